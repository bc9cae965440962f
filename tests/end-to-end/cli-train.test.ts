import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { afterAll, describe, expect, it } from 'vitest';
import { buildEmulator, whyNoEmulator } from '../cuda-emulator/build.mjs';
import { asa, trainTiny, workspace } from './cli-process';

const { path, remove } = workspace();
afterAll(remove);

const train = (out: string, ...more: string[]) => [
  ...trainTiny(path),
  ...['--out', path(out), ...more],
];
const weights = (model: string) =>
  readFileSync(path(model, 'model.safetensors'));
const events = (model: string) =>
  readFileSync(path(model, 'train.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line));

describe('train', () => {
  it('leaves a log and a model folder that generate loads', async () => {
    const { code, stdout, stderr } = await asa(
      train(
        'model',
        ...['--steps', '6', '--validation', path('text', '1.txt')],
        ...['--validation-tokens', '200', '--eval-every', '3'],
      ),
    );
    expect(code, stderr).toBe(0);
    expect(stdout).toBe('');
    expect(stderr).toMatch(/^step 6\/6 {2}loss \d/m);
    expect(stderr).toMatch(/step 6: held-out loss .* bits a byte/);
    const log = events('model');
    expect(log.map(({ kind, step }) => `${kind} ${step}`)).toEqual([
      ...['step 1', 'step 2', 'step 3', 'evaluation 3'],
      ...['step 4', 'step 5', 'step 6', 'evaluation 6'],
      ...['checkpoint 6', 'end 6'],
    ]);
    expect(log[5].loss).toBeLessThan(log[0].loss);
    const generated = await asa([
      ...['generate', '--model', path('model'), '--prompt', 'the'],
      ...['--max-tokens', '3'],
    ]);
    expect(generated.code, generated.stderr).toBe(0);
  });

  it('goes on from Ctrl-C to the bits of an unbroken run', async () => {
    let isStopped = false;
    const broken = await asa(train('broken', '--steps', '100000'), {
      onOutput(child, text) {
        if (isStopped || !text.includes('step 1/')) return;
        isStopped = true;
        child.kill('SIGINT');
      },
    });
    expect(broken.code).toBe(130);
    const [, stopped] = /stopped at step (\d+); --resume/.exec(
      broken.stderr,
    ) ?? ['', ''];
    const { length } = events('broken').filter(({ kind }) => kind === 'step');
    expect(String(length)).toBe(stopped);
    expect(existsSync(path('broken', 'config.json'))).toBe(true);

    const steps = ['--steps', String(length + 3)];
    const resumed = await asa(train('broken', ...steps, '--resume'));
    expect(resumed.code, resumed.stderr).toBe(0);
    expect(resumed.stderr).toContain(`going on behind step ${length}`);
    const whole = await asa(train('whole', ...steps));
    expect(whole.code, whole.stderr).toBe(0);
    expect(weights('broken').equals(weights('whole'))).toBe(true);
    const another = await asa(train('another', ...steps, '--seed', '1'));
    expect(another.code, another.stderr).toBe(0);
    expect(weights('another').equals(weights('whole'))).toBe(false);
  });

  // The second is no whole number of milliseconds, and no time for a step.
  it.each(['0.01', '0.00001'])(
    'stops in time by --minutes %s, and that is no failure',
    async (minutes) => {
      const timed = `timed-${minutes}`;
      const { code, stderr } = await asa(train(timed, '--minutes', minutes));
      expect(code, stderr).toBe(0);
      expect(existsSync(path(timed, 'model.safetensors'))).toBe(true);
      const end = events(timed).at(-1);
      expect(end).toMatchObject({ kind: 'end', reason: 'aborted' });
    },
  );

  it('leaves a folder alone that holds another run or model', async () => {
    const steps = ['--steps', '1', '--vocabulary', '280'];
    await asa(train('mine', ...steps, '--seed', '1'));
    const files = ['tokenizer.json', 'config.json', 'model.safetensors'];
    const read = () =>
      files.map((name) => readFileSync(path('mine', name), 'base64'));
    const before = read();
    const again = await asa(train('mine', ...steps));
    expect(again.code).toBe(2);
    expect(again.stderr).toContain('--resume');
    expect(read()).toEqual(before);

    await asa(['convert', path('mine'), path('converted')]);
    const over = await asa(train('converted', ...steps));
    expect(over.code).toBe(2);
    expect(over.stderr).toContain('holds a model');
  });

  it('takes tokenizer and configuration of another model', async () => {
    const first = await asa([
      ...['tokenizer', 'train', '--data', path('text')],
      ...['--vocabulary', '280', '--out', path('tokenizer')],
    ]);
    expect(first.code, first.stderr).toBe(0);
    expect(readdirSync(path('tokenizer'))).toEqual([
      'tokenizer.json',
      'tokenizer_config.json',
    ]);
    const given = ['--tokenizer', path('tokenizer'), '--steps', '1'];
    const second = await asa(train('second', ...given));
    expect(second.code, second.stderr).toBe(0);
    const config = path('second', 'config.json');
    const third = await asa(train('third', ...given, '--config', config));
    expect(third.code, third.stderr).toBe(0);
    expect(readFileSync(path('third', 'config.json'))).toEqual(
      readFileSync(config),
    );
    expect(weights('third').equals(weights('second'))).toBe(true);
  });

  it.each([
    ['no length', [], '--steps or --tokens'],
    ['an unknown preset', ['--steps', '1', '--preset', 'huge'], 'tiny'],
    ['no such data', ['--steps', '1', '--data', '/none'], '/none'],
    ['too little text', ['--steps', '1', '--vocabulary', '9000'], 'fewer'],
    ['no such configuration', ['--steps', '1', '--config', '/no.json'], '/no'],
    ['devices of no number', ['--steps', '1', '--device', '0,x'], 'a whole'],
    ['a device twice', ['--steps', '1', '--device', '1,0,1'], 'come twice'],
    ['numbers where there are none', ['--steps', '1', '--device', '0'], 'cuda'],
    [
      'fewer passes than devices',
      [
        ...['--steps', '1', '--backend', 'cuda', '--device', '0,1,2'],
        ...['--accumulate', '2'],
      ],
      '--accumulate: must be at least 3',
    ],
  ])('refuses %s', async (_, args, rule) => {
    const { code, stdout, stderr } = await asa(train('refused', ...args));
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(rule);
  });

  it.skipIf(whyNoEmulator())(
    'shares a step out to two cards, to the bits of one',
    async () => {
      const folder = await buildEmulator();
      const env = { LD_LIBRARY_PATH: folder, XDG_CACHE_HOME: folder };
      const run = async (out: string, ...more: string[]) => {
        const args = ['--steps', '2', '--backend', 'cuda', ...more];
        const { code, stderr } = await asa(train(out, ...args), { env });
        expect(code, stderr).toBe(0);
        return weights(out);
      };
      const two = await run('two-cards', '--device', '0,1');
      const one = await run('one-card', '--accumulate', '2');
      expect(two.equals(one)).toBe(true);
      expect(events('two-cards')[0].tokens).toBe(events('one-card')[0].tokens);
      const none = await asa(
        train(
          'no-card',
          '--steps',
          '1',
          '--backend',
          'cuda',
          '--device',
          '0,2',
        ),
        { env },
      );
      expect(none.code).toBe(4);
      expect(none.stderr).toContain('device 2 is not one of 2');
    },
    120_000,
  );

  it('refuses data that is no text', async () => {
    writeFileSync(path('binary.txt'), Uint8Array.of(0xff, 0xfe, 0xfd));
    const { code, stderr } = await asa(
      train('refused', '--steps', '1', '--data', path('binary.txt')),
    );
    expect(code).toBe(2);
    expect(stderr).toContain('binary.txt: must be UTF-8 text');
  });

  it('has nothing to resume in an empty folder', async () => {
    const { code, stderr } = await asa(
      train('empty', '--steps', '1', '--resume'),
    );
    expect(code).not.toBe(0);
    expect(stderr).toContain(path('empty'));
    expect(stderr).not.toContain('internal');
  });
});
