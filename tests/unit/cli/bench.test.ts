import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { BenchReport } from '@asa/core/bench';
import { afterAll, afterEach, beforeEach, expect, it, vi } from 'vitest';
import { exitCode } from '../../../packages/cli/src/exit';
import { run } from '../../../packages/cli/src/program';

const bench = vi.hoisted(() => vi.fn());
vi.mock('@asa/core/bench', () => ({
  bench,
  profiles: { small: 'small', large: 'large' },
}));

const row: BenchReport['rows'][number] = {
  suite: 'operators',
  name: 'attention',
  dtype: 'f16',
  shape: 'T 7, "odd"',
  context: 7,
  status: 'ok',
  checkedOn: 'same shapes',
  worst: 12,
  cost: { flops: 3e9, bytes: 2e6 },
  timing: {
    ...{ ms: 2, lower: 1.5, upper: 2.5, fastest: 1 },
    ...{ repetitions: 20, calls: 4 },
  },
  rates: { teraflops: 1.5, gigabytesPerSecond: 1, ofPeak: 50, ofBandwidth: 25 },
};
const wrong: BenchReport['rows'][number] = {
  ...{ suite: 'operators', name: 'broken', dtype: 'f16', shape: 'T 7' },
  ...{ status: 'mismatch', checkedOn: '', detail: 'o[0] is 1, must be 2' },
};
const report: BenchReport = {
  ...{ backend: 'cpu', device: 'a stub', date: 'today' },
  ...{ rows: [row], complete: true, passed: true },
};
const gives = (changes: Partial<BenchReport>) =>
  bench.mockImplementation(async function* () {
    yield { type: 'start', name: 'attention', done: 0, total: 1 };
    yield { type: 'row', row };
    yield { type: 'report', report: { ...report, ...changes } };
  });

const folder = mkdtempSync(join(tmpdir(), 'asa-bench-'));
afterAll(() => rmSync(folder, { recursive: true }));
const stdout = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
const stderr = vi.spyOn(process.stderr, 'write').mockReturnValue(true);
const said = (stream: typeof stdout) =>
  stream.mock.calls.map(([text]) => text).join('');

beforeEach(() => {
  vi.stubEnv('XDG_CONFIG_HOME', '/nonexistent');
  stdout.mockClear();
  stderr.mockClear();
  bench.mockClear();
  gives({});
});
afterEach(() => {
  process.exitCode = undefined;
  vi.unstubAllEnvs();
});

const cpu = ['bench', '--backend', 'cpu'];

it.each([
  ['all is well', {}, exitCode.ok],
  ['a mismatch', { passed: false, rows: [row, wrong] }, exitCode.mismatch],
  ['an interruption', { complete: false }, exitCode.interrupted],
  [
    'a failure',
    { rows: [{ ...wrong, status: 'failed' as const }] },
    exitCode.failure,
  ],
])('exit code of %s', async (_, changes, code) => {
  gives(changes);
  expect(await run(cpu)).toBe(code);
});

it('a mismatch is shown without a time, with what is wrong', async () => {
  gives({ passed: false, rows: [row, wrong] });
  await run(cpu);
  const line = said(stdout)
    .split('\n')
    .find((text) => text.includes('broken'));
  expect(line).not.toMatch(/\d\.\d/);
  expect(said(stdout)).toContain('broken f16: mismatch, o[0] is 1, must be 2');
});

it('prints a table whose rows have as many cells as its title', async () => {
  await run(cpu);
  const table = said(stdout)
    .split('\n')
    .filter((line) => line.startsWith('|'));
  expect(table).toHaveLength(3);
  const cells = (line = '') => line.split('|').map((cell) => cell.trim());
  const [title, values] = [cells(table[0]), cells(table[2])];
  expect(values).toHaveLength(title.length);
  const value = (name: string) => values[title.indexOf(name)];
  expect(value('ms')).toBe('2');
  expect(value('quartiles')).toBe('1.50 - 2.50');
  expect(value('TFLOP/s')).toBe('1.50');
  expect(value('% of peak')).toBe('50');
  expect(value('checked on')).toBe('same shapes');
});

it('prints CSV with quotes where they are needed', async () => {
  await run([...cpu, '-o', 'csv']);
  const [title, line, ...rest] = said(stdout).trimEnd().split('\n');
  expect(title).toMatch(/^device,suite,case,type,shape,ms,fastest,lower,upper/);
  expect(line).toContain('a stub,operators,attention,f16,"T 7, ""odd""",2,1,');
  expect(rest).toEqual([]);
});

it('prints JSON that --against takes', async () => {
  await run([...cpu, '-o', 'json']);
  const json = said(stdout);
  expect(JSON.parse(json)).toMatchObject({ ...report, version: '0.1.0' });
  const path = join(folder, 'earlier.json');
  const earlier = { ...row, timing: { ...row.timing, ms: 5 } };
  writeFileSync(path, JSON.stringify({ ...report, rows: [earlier] }));
  stdout.mockClear();
  await run([...cpu, '--against', path]);
  expect(said(stdout)).toMatch(/earlier ms \| times as fast \|/);
  expect(said(stdout)).toMatch(/\| 5 \| 2\.50 \|/);
});

it.each([
  ['nothing there', undefined],
  ['no JSON', 'asa'],
  ['no rows', '{"rows": 3}'],
])('--against a file with %s is wrong usage', async (name, text) => {
  const path = join(folder, `${name}.json`);
  if (text !== undefined) writeFileSync(path, text);
  expect(await run([...cpu, '--against', path])).toBe(exitCode.usage);
  expect(said(stderr)).toMatch(/--against/);
  expect(bench).not.toHaveBeenCalled();
});

it('passes on what is asked for', async () => {
  await run([
    ...cpu,
    ...['--context', '2k,300', '--dtype', 'f32,f16', '--only', 'pp,tg'],
    ...['--suite', 'model', '--preset', 'tiny', '--generate', '7'],
  ]);
  expect(bench.mock.lastCall?.[0]).toMatchObject({
    contexts: [2048, 300],
    dtypes: ['f32', 'f16'],
    only: ['pp', 'tg'],
    suites: ['model'],
    generate: 7,
    profile: 'small',
    model: { name: 'tiny' },
    repetitions: 20,
  });
  const { model } = bench.mock.lastCall?.[0] ?? {};
  expect(model.config.context).toBeGreaterThan(2048 + 7);
});

it.each([
  ['--context', '0'],
  ['--context', 'many'],
  ['--context', '8k,'],
  ['--dtype', 'f8'],
  ['--suite', 'matmul,all'],
  ['--repetitions', '0'],
  ['--seconds', '0'],
  ['-o', 'xml'],
])('%s %s is wrong usage', async (name, value) => {
  expect(await run([...cpu, name, value])).toBe(exitCode.usage);
});

it('takes a model or a preset, not both', async () => {
  const both = ['--model', 'somewhere', '--preset', 'tiny'];
  expect(await run([...cpu, ...both])).toBe(exitCode.usage);
});
