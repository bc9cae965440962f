import { readFile } from 'node:fs/promises';
import type { CommandUnknownOpts, Option } from '@commander-js/extra-typings';
import { UsageError } from './exit';
import { defaultConfigFile } from './paths';

/** Every option of a command also has a name in the environment. */
const environmentName = (option: Option): string =>
  `ASA_${option.name().toUpperCase().replaceAll('-', '_')}`;

/** The words that call a command: `eval perplexity`. */
export function wordsOf(command: CommandUnknownOpts): string {
  const names: string[] = [];
  let each: CommandUnknownOpts | null = command;
  for (; each && each.name() !== 'asa'; each = each.parent) {
    names.unshift(each.name());
  }
  return names.join(' ');
}

/**
 * Fills in the options that the command line left out: from `ASA_*`, then
 * from the configuration file, then their defaults.
 * @param all every command, to tell a misspelt setting from another command's.
 * @throws UsageError that names the variable, or the file and the field.
 */
export async function applySettings(
  command: CommandUnknownOpts,
  all: () => Promise<readonly CommandUnknownOpts[]>,
): Promise<void> {
  applyEnvironment(command);
  const { configFile } = command.opts();
  const explicit = typeof configFile === 'string' ? configFile : undefined;
  const path = explicit ?? defaultConfigFile();
  const settings = path && (await readSettings(path, explicit !== undefined));
  if (settings) await applyFile(command, { path, settings }, all);
  checkRequired(command);
}

const required = new WeakSet<Option>();

/** Commander would look for required options before the settings are in. */
export function deferRequired(command: CommandUnknownOpts): void {
  for (const option of command.options) {
    if (option.mandatory) required.add(option);
    option.mandatory = false;
  }
}

function checkRequired(command: CommandUnknownOpts): void {
  for (const option of command.options) {
    const value = command.getOptionValue(option.attributeName());
    if (value !== undefined || !required.has(option)) continue;
    throw new UsageError(`required option '${option.flags}' not specified`);
  }
}

type Settings = Readonly<Record<string, unknown>>;

function applyEnvironment(command: CommandUnknownOpts): void {
  for (const option of command.options) {
    const name = environmentName(option);
    const text = process.env[name];
    // Set but empty is how shells write "not set".
    if (text) assign(command, option, parseSwitch(option, text), name);
  }
}

/** The flags are words in the environment, and booleans in the file. */
function parseSwitch(option: Option, text: string): unknown {
  if (!takesSwitch(option)) return text;
  if (/^(1|true|yes|on)$/i.test(text)) return true;
  return /^(0|false|no|off)$/i.test(text) ? false : text;
}

async function applyFile(
  command: CommandUnknownOpts,
  { path, settings }: { path: string; settings: Settings },
  all: () => Promise<readonly CommandUnknownOpts[]>,
): Promise<void> {
  const section = wordsOf(command);
  const own = settings[section] ?? {};
  if (!isObject(own)) {
    throw await configError(path, section, 'must be an object');
  }
  const unknown = Object.keys(own).find((name) => !optionOf(command, name));
  if (unknown !== undefined) {
    throw await configError(path, `${section}.${unknown}`, 'no such option');
  }
  const shared = Object.keys(settings).filter((key) => key !== section);
  if (!shared.every((name) => optionOf(command, name))) {
    await checkNames(path, shared, await all());
  }
  // The own section comes first: what is set already stays.
  for (const [where, values] of [
    [`${section}.`, own],
    ['', settings],
  ] as const) {
    for (const [name, value] of Object.entries(values)) {
      const option = optionOf(command, name);
      if (option) assign(command, option, value, `${path}: ${where}${name}`);
    }
  }
}

const optionOf = (command: CommandUnknownOpts, name: string) =>
  command.options.find((option) => option.long === `--${name}`);

async function checkNames(
  path: string,
  names: readonly string[],
  all: readonly CommandUnknownOpts[],
): Promise<void> {
  for (const name of names) {
    const isKnown = all.some(
      (command) => optionOf(command, name) || wordsOf(command) === name,
    );
    if (!isKnown) {
      throw await configError(path, name, 'no such option or command');
    }
  }
}

/** Sets an option that nothing of higher rank has set. */
function assign(
  command: CommandUnknownOpts,
  option: Option,
  value: unknown,
  origin: string,
): void {
  const key = option.attributeName();
  const source = command.getOptionValueSource(key);
  if (source !== undefined && source !== 'default') return;
  try {
    command.setOptionValueWithSource(key, parse(option, value), 'config');
  } catch (cause) {
    const rule = cause instanceof Error ? cause.message : String(cause);
    throw new UsageError(`${origin}: ${rule}`, { cause });
  }
}

/** Whether it can be given without a value. */
const takesSwitch = (option: Option) => option.isBoolean() || option.optional;

function parse(option: Option, value: unknown): unknown {
  if (takesSwitch(option) && typeof value === 'boolean') return value;
  if (option.isBoolean()) {
    throw new Error(`must be true or false, got ${JSON.stringify(value)}`);
  }
  const texts = (Array.isArray(value) ? value : [value]).map(textOf);
  const { parseArg } = option;
  if (!parseArg) return option.variadic ? texts : texts.at(-1);
  return texts.reduce<unknown>(
    (before, text) => parseArg(text, before),
    option.defaultValue,
  );
}

function textOf(value: unknown): string {
  if (typeof value === 'string') return value;
  if (typeof value === 'number') return String(value);
  throw new Error(`must be text or a number, got ${JSON.stringify(value)}`);
}

/** The file's content; nothing where none was asked for and none is there. */
async function readSettings(
  path: string,
  isWanted: boolean,
): Promise<Settings | undefined> {
  const text = await readFile(path, 'utf8').catch(async (cause) => {
    const absent = ['ENOENT', 'ENOTDIR', 'EACCES'].includes(cause.code);
    if (absent && !isWanted) return undefined;
    throw await configError(path, undefined, cause.message, cause);
  });
  if (text === undefined) return undefined;
  const json = await parseJson(path, text);
  if (isObject(json)) return json;
  throw await configError(path, undefined, 'must hold a JSON object');
}

async function parseJson(path: string, text: string): Promise<unknown> {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw await configError(path, undefined, `not JSON, ${cause}`, cause);
  }
}

const isObject = (value: unknown): value is Settings =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** A bad setting is bad usage; what is wrong with it is a `ConfigError`. */
async function configError(
  path: string,
  field: string | undefined,
  rule: string,
  reason?: unknown,
): Promise<UsageError> {
  // Imported here: the library would slow down every start.
  const { ConfigError } = await import('@asa/core');
  const cause = new ConfigError(path, field, rule, { cause: reason });
  return new UsageError(cause.message, { cause });
}
