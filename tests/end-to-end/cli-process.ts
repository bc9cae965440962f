import { type ChildProcess, spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The program as a user gets it. */
export const main = fileURLToPath(
  new URL('../../packages/cli/dist/main.js', import.meta.url),
);

export interface Result {
  /** What the shell calls `$?`. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** Standard input; empty when left out. */
  readonly input?: string | Uint8Array;
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Called with each piece of output. */
  readonly onOutput?: (child: ChildProcess, text: string) => void;
}

/** Runs `asa` in an environment that holds nothing of the tester's. */
export function asa(
  args: readonly string[],
  { input = '', env = {}, onOutput }: RunOptions = {},
): Promise<Result> {
  const child = start(args, env);
  const output = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name].setEncoding('utf8').on('data', (text: string) => {
      output[name] += text;
      onOutput?.(child, text);
    });
  }
  // Whoever has read enough closes the pipe.
  child.stdin.on('error', () => {}).end(input);
  return ended(child).then((code) => ({ code, ...output }));
}

export const start = (args: readonly string[], env: RunOptions['env'] = {}) =>
  spawn(process.execPath, [main, ...args], {
    env: { PATH: process.env.PATH, HOME: '/nonexistent', ...env },
    stdio: 'pipe',
  });

export const ended = (child: ChildProcess): Promise<number> =>
  new Promise((resolve) => {
    child.once('close', (code, signal) =>
      resolve(code ?? 128 + (signal ? constants.signals[signal] : 0)),
    );
  });

/** A folder for one test file, with a text to train on and a configuration. */
export function workspace(): {
  path: (...names: string[]) => string;
  remove: () => void;
} {
  const root = mkdtempSync(join(tmpdir(), 'asa-cli-'));
  const path = (...names: string[]) => join(root, ...names);
  mkdirSync(path('text'));
  for (const seed of [1, 2, 3]) {
    writeFileSync(path('text', `${seed}.txt`), story(seed));
  }
  writeFileSync(path('tiny.json'), JSON.stringify(tinyModel));
  return { path, remove: () => rmSync(root, { recursive: true }) };
}

/** A long context, so that there is time to interrupt a generation. */
const tinyModel = {
  hiddenSize: 32,
  intermediateSize: 48,
  layers: 2,
  context: 4096,
  tieEmbeddings: true,
  pattern: 'F',
  attention: {
    F: { kind: 'gqa', heads: 2, keyValueHeads: 1, headWidth: 16 },
  },
};

/** The options of a run that takes a second. */
export const trainTiny = (path: (...names: string[]) => string) => [
  'train',
  ...['--data', path('text'), '--config', path('tiny.json')],
  ...['--vocabulary', '290', '--batch', '2', '--context', '32'],
  ...['--learning-rate', '1e-2', '--warmup', '1', '--schedule', 'constant'],
];

function story(seed: number): string {
  const subjects = ['the cat', 'a dog', 'the old man', 'my sister', 'a bird'];
  const verbs = ['sees', 'likes', 'follows', 'finds', 'greets', 'hears'];
  const objects = ['the house', 'a tree', 'the river', 'an apple', 'the moon'];
  let state = seed;
  const pick = (words: readonly string[]) => {
    state = (state * 48_271) % 2_147_483_647;
    return words[state % words.length];
  };
  return Array.from(
    { length: 100 },
    () => `${pick(subjects)} ${pick(verbs)} ${pick(objects)}.\n`,
  ).join('');
}
