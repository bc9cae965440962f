import {
  Command,
  CommanderError,
  type CommandUnknownOpts,
} from '@commander-js/extra-typings';
import { version } from '../package.json';
import { exitCode, oneLine, report } from './exit';
import { applySettings, deferRequired } from './settings';

interface Entry {
  readonly summary: string;
  load(): Promise<{ readonly command: unknown }>;
}

/** Every command; its code is read when it is asked for. */
const entries: Readonly<Record<string, Entry>> = {
  generate: {
    summary: 'continue a text',
    load: () => import('./commands/generate'),
  },
  chat: {
    summary: 'talk with a model',
    load: () => import('./commands/chat'),
  },
  eval: {
    summary: 'measure what a model can do',
    load: () => import('./commands/eval'),
  },
  verify: {
    summary: 'prove a backend',
    load: () => import('./commands/verify'),
  },
  bench: {
    summary: 'measure a backend',
    load: () => import('./commands/bench'),
  },
  train: {
    summary: 'train a model on text',
    load: () => import('./commands/train'),
  },
  tokenizer: {
    summary: 'train a tokenizer on text',
    load: () => import('./commands/tokenizer'),
  },
  inspect: {
    summary: 'size, cost and KV cache of a model',
    load: () => import('./commands/inspect'),
  },
  plot: {
    summary: 'draw training logs and evaluations',
    load: () => import('./commands/plot'),
  },
  convert: {
    summary: 'write a model in another type or in shards',
    load: () => import('./commands/convert'),
  },
  doctor: {
    summary: 'what works on this machine, and why not',
    load: () => import('./commands/doctor'),
  },
  completion: {
    summary: 'a script that completes commands in your shell',
    load: () => import('./commands/completion'),
  },
};

const description = 'Sparse long-context attention: generate, train, verify.';

const footer = `
Every option can also be set by the environment, such as ASA_MODEL for --model,
or by a JSON file, $XDG_CONFIG_HOME/asa/config.json or --config-file. A flag
counts more than the environment, and that more than the file.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 verification found a mismatch,
4 the backend that was named is not available, 130 stopped by Ctrl-C.`;

/**
 * Runs the program.
 * @returns the exit code.
 */
export async function run(args: readonly string[]): Promise<number> {
  try {
    const program = await buildProgram(args[0] === 'help' ? args[1] : args[0]);
    await program.parseAsync(upToUnknown(program, args), { from: 'user' });
    return Number(process.exitCode ?? exitCode.ok);
  } catch (error) {
    if (!(error instanceof CommanderError)) return report(error);
    // Commander has said what it had to say.
    return error.exitCode === 0 ? exitCode.ok : exitCode.usage;
  }
}

/** The program with one command in full and the others by name. */
async function buildProgram(wanted: string | undefined): Promise<Command> {
  const program = new Command('asa')
    .description(description)
    .version(version)
    .helpCommand('help [command]', 'help for a command')
    .exitOverride()
    .configureOutput({
      outputError: (text, write) =>
        write(`asa: ${oneLine(text.replace(/^error: /, ''))}\n`),
    })
    .addHelpText('after', footer)
    .hook('preAction', (_, command) => applySettings(command, loadAll));
  for (const [name, { summary }] of Object.entries(entries)) {
    const command =
      name === wanted ? await loadCommand(name) : new Command(name);
    for (const part of [command, ...command.commands]) {
      part.copyInheritedSettings(program);
    }
    // A wrong option needs a line, a wrong command the list of them.
    command.showHelpAfterError(command.commands.length > 0);
    program.addCommand(command.summary(summary));
  }
  return program.showHelpAfterError();
}

/** The words up to an unknown command, which `help` would hide. */
function upToUnknown(
  program: CommandUnknownOpts,
  args: readonly string[],
): readonly string[] {
  const words = args[0] === 'help' ? args.slice(1) : args;
  let command = program;
  for (const [i, word] of words.entries()) {
    if (command.commands.length === 0 || /^(-.*|help)$/.test(word)) break;
    const next = command.commands.find((each) => each.name() === word);
    if (!next) return words.slice(0, i + 1);
    command = next;
  }
  return args;
}

const loaded = new Map<string, CommandUnknownOpts>();

/** A command in full, with the options that all have. */
async function loadCommand(name: string): Promise<CommandUnknownOpts> {
  const known = loaded.get(name);
  if (known) return known;
  const command = (await entries[name]?.load())?.command as CommandUnknownOpts;
  for (const leaf of leaves(command)) {
    leaf.option('--config-file <file>', 'settings to use, as JSON');
    deferRequired(leaf);
  }
  loaded.set(name, command);
  return command;
}

/** The commands that do something, in full. */
export async function loadAll(): Promise<CommandUnknownOpts[]> {
  const commands = await Promise.all(Object.keys(entries).map(loadCommand));
  return commands.flatMap(leaves);
}

const leaves = (command: CommandUnknownOpts): CommandUnknownOpts[] =>
  command.commands.length > 0 ? command.commands.flatMap(leaves) : [command];
