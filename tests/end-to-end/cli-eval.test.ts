import { readFileSync, writeFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asa, trainTiny, workspace } from './cli-process';

const { path, remove } = workspace();
const model = path('model');
const text = path('text', '1.txt');

beforeAll(async () => {
  const { code, stderr } = await asa([
    ...trainTiny(path),
    ...['--out', model, '--steps', '5'],
  ]);
  expect(code, stderr).toBe(0);
});
afterAll(remove);

const svg = (name: string) => readFileSync(path(name), 'utf8');
const isPng = (name: string) =>
  readFileSync(path(name)).subarray(1, 4).toString() === 'PNG';

describe('eval needle', () => {
  const needle = (...more: string[]) =>
    asa([
      ...['eval', 'needle', '--model', model, '--backend', 'cpu'],
      ...['--lengths', '900,1k', '--depths', '3', '--answer-tokens', '4'],
      ...more,
    ]);

  it('--json prints trials, and their counts by place', async () => {
    writeFileSync(path('prose'), 'The cat sat. "A dog!" he said. It ran.\n');
    const { code, stdout, stderr } = await needle(
      ...[
        '--text',
        path('prose'),
        '--tasks',
        '1,3',
        '--samples',
        '2',
        '--json',
      ],
      ...['--plot', path('needle.png')],
    );
    expect(code, stderr).toBe(0);
    const { kind, lengths, cells, trials } = JSON.parse(stdout);
    expect(kind).toBe('needle');
    expect(trials).toHaveLength(2 * 2 * 3 * 2);
    expect(cells).toHaveLength(2 * 2 * 3);
    expect(lengths).toMatchObject(
      [
        [1, 900],
        [1, 1024],
        [3, 900],
        [3, 1024],
      ].map(([task, length]) => ({ task, length, trials: 6 })),
    );
    for (const { length, promptTokens } of trials) {
      expect(promptTokens).toBeLessThanOrEqual(length - 4);
    }
    expect(isPng('needle.png')).toBe(true);
    writeFileSync(path('needle.json'), stdout);
  });

  it('prints a table a task for people', async () => {
    const { stdout } = await needle('--tasks', '1');
    const lines = stdout.trimEnd().split('\n');
    expect(lines.map((line) => line.split(/ {2,}/)[0])).toEqual([
      'S-NIAH-1',
      '0 %',
      '50 %',
      '100 %',
      'all',
    ]);
  });

  it.each([
    ['no text', [], 'tasks 2 and 3 need a text'],
    ['an unknown task', ['--tasks', '4'], 'A task is 1, 2 or 3.'],
    ['a plot of an unknown kind', ['--plot', 'x.pdf'], 'in .svg or .png'],
    ['one list of words', ['--words', 'a.txt'], 'a.txt: ENOENT'],
    ['a length beyond the model', ['--lengths', '9k'], 'from 1 to 4096'],
  ])('refuses %s', async (_, args, rule) => {
    const { code, stdout, stderr } = await needle(...args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(rule);
  });
});

describe('eval choice', () => {
  const file = (name: string, ...items: object[]) => {
    const lines = items.map((item) => `${JSON.stringify(item)}\n`).join('');
    writeFileSync(path(name), lines);
    return path(name);
  };
  const choice = (...more: string[]) =>
    asa(['eval', 'choice', '--model', model, '--backend', 'cpu', ...more]);
  const query = { query: 'the cat', choices: ['sees a tree', 'qx'], gold: 0 };

  it('scores each file, and draws it', async () => {
    const data = [
      file('pairs.jsonl', query, { ...query, gold: 1 }),
      file('words.jsonl', { context: 'the cat sees', continuation: 'the' }),
    ];
    const { code, stdout, stderr } = await choice(
      ...['--data', ...data, '--json', '--plot', path('choice.svg')],
    );
    expect(code, stderr).toBe(0);
    const { tasks } = JSON.parse(stdout);
    expect(tasks).toMatchObject([
      { task: 'pairs', acc: { trials: 2, correct: 1 }, chance: 0.5 },
      { task: 'words', acc: { trials: 1 }, perplexity: expect.any(Number) },
    ]);
    expect(svg('choice.svg')).toMatch(/^<svg[\s\S]*pairs/);
  });

  it('names the file and the line that break a rule', async () => {
    const bad = file('bad.jsonl', query, { query: 'the dog' });
    const { code, stdout, stderr } = await choice('--data', bad);
    expect({ code, stdout }).toEqual({ code: 1, stdout: '' });
    expect(stderr).toContain('bad.jsonl:2: must have query, choices, gold');
  });
});

describe('plot', () => {
  it('draws a log', async () => {
    const log = path('model', 'train.jsonl');
    const { code, stderr } = await asa([
      ...['plot', log, log, '--names', 'one,other'],
      ...['--out', path('loss.svg')],
    ]);
    expect(code, stderr).toBe(0);
    expect(svg('loss.svg')).toMatch(/nats a token[\s\S]*other/);
  });

  it('draws losses by position', async () => {
    const { stdout } = await asa([
      ...['eval', 'perplexity', '--model', model, '--backend', 'cpu'],
      ...['--data', text, '--json', '--plot', path('positions.svg')],
    ]);
    writeFileSync(path('perplexity.json'), stdout);
    const { code, stderr } = await asa([
      ...['plot', path('perplexity.json'), '--out', path('again.svg')],
    ]);
    expect(code, stderr).toBe(0);
    expect(svg('again.svg')).toContain('tokens seen before');
    expect(svg('positions.svg')).toContain('tokens seen before');
  });

  it.each([
    ['different kinds', ['needle.json', 'perplexity.json'], 'the same as'],
    ['other JSON', ['tiny.json'], 'must be a training log'],
    ['text', ['text/1.txt'], '1.txt:1: must be a JSON object'],
    ['no file', ['gone.json'], 'ENOENT'],
  ])('refuses %s', async (_, names, rule) => {
    const { code, stderr } = await asa([
      ...['plot', ...names.map((name) => path(name))],
      ...['--out', path('none.svg')],
    ]);
    expect(code).toBe(2);
    expect(stderr).toContain(rule);
  });
});
