import {
  Argument,
  Command,
  type CommandUnknownOpts,
  type Option,
} from '@commander-js/extra-typings';
import { loadAll } from '../program';
import { wordsOf } from '../settings';

const shells = ['bash', 'zsh', 'fish'] as const;
type Shell = (typeof shells)[number];

export const command = new Command('completion')
  .description('Prints a script that completes commands and options.')
  .addArgument(new Argument('<shell>', 'your shell').choices(shells))
  .addHelpText(
    'after',
    `
Examples:
  source <(asa completion bash)             # in ~/.bashrc
  source <(asa completion zsh)              # in ~/.zshrc, after compinit
  asa completion fish > ~/.config/fish/completions/asa.fish`,
  )
  .action(async (shell) => {
    process.stdout.write(scripts[shell](words(await loadAll())));
  });

/** What may follow the words that call a command, `''` for none. */
type Words = ReadonlyMap<string, readonly string[]>;

function words(commands: readonly CommandUnknownOpts[]): Words {
  const following = new Map<string, string[]>();
  const add = (path: string, word: string) => {
    const known = following.get(path) ?? [];
    if (!known.includes(word)) following.set(path, [...known, word]);
  };
  for (const each of commands) {
    const path = wordsOf(each).split(' ');
    for (const [depth, name] of path.entries()) {
      add(path.slice(0, depth).join(' '), name);
    }
    for (const word of argumentsOf(each)) add(path.join(' '), word);
  }
  add('', 'help');
  add('', '--version');
  return following;
}

function argumentsOf(command: CommandUnknownOpts): string[] {
  const choices = command.registeredArguments.flatMap(
    ({ argChoices }) => argChoices ?? [],
  );
  const flags = command.options.map((option: Option) => option.long ?? '');
  return [...choices, ...flags, '--help'];
}

/** The lines of a `case` over the words so far. */
function cases(following: Words): string {
  return [...following]
    .map(([path, next]) => `    '${path}') reply='${next.join(' ')}' ;;`)
    .join('\n');
}

// The words so far are those before the first option. Where a command is
// complete, files are offered beside its options.
const scripts: Readonly<Record<Shell, (following: Words) => string>> = {
  bash: (following) => `_asa() {
  local path='' word reply=''
  for word in "\${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    [[ $word == -* ]] && break
    path="\${path:+$path }$word"
  done
  case "$path" in
${cases(following)}
  esac
  COMPREPLY=($(compgen -W "$reply" -- "\${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _asa asa
`,
  zsh: (following) => `#compdef asa
_asa() {
  local line='' word reply=''
  for word in "\${(@)words[2,CURRENT-1]}"; do
    [[ $word == -* ]] && break
    line="\${line:+$line }$word"
  done
  case "$line" in
${cases(following)}
  esac
  compadd -- \${=reply} || _files
}
compdef _asa asa
`,
  fish: (following) =>
    [
      'function __asa_path',
      '  set -l path',
      '  for word in (commandline -opc)[2..-1]',
      "    string match -q -- '-*' $word; and break",
      '    set -a path $word',
      '  end',
      '  echo "$path"',
      'end',
      ...[...following].map(
        ([path, next]) =>
          `complete -c asa ${path === '' ? '-f ' : ''}-n 'test (__asa_path) = "${path}"' -a '${next.join(' ')}'`,
      ),
      '',
    ].join('\n'),
};
