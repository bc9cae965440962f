import { readdirSync, readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { asa, trainTiny, workspace } from './cli-process';

const { path, remove } = workspace();
const model = path('model');

beforeAll(async () => {
  const { code, stderr } = await asa([
    ...trainTiny(path),
    ...['--out', model, '--steps', '20'],
  ]);
  expect(code, stderr).toBe(0);
});
afterAll(remove);

describe('chat', () => {
  /** What is said to these lines, on standard input. */
  async function chat(lines: readonly string[], ...more: string[]) {
    const result = await asa(
      [
        ...['chat', '--model', model, '--max-tokens', '6', '--seed', '3'],
        ...more,
      ],
      { input: lines.map((line) => `${line}\n`).join('') },
    );
    expect(result.code, result.stderr).toBe(0);
    return result;
  }

  it('keeps what was said, and /undo and /reset forget it', async () => {
    const [first, both, other, undone, reset] = await Promise.all([
      chat(['the cat']),
      chat(['the cat', 'a dog']),
      chat(['a dog']),
      chat(['the cat', 'a dog', '/undo', 'a dog', '/exit', 'never']),
      chat(['the cat', '/reset', 'a dog']),
    ]);
    const a = first.stdout;
    const b = both.stdout.slice(a.length);
    expect(both.stdout).toBe(a + b);
    expect(a.length).toBeGreaterThan(1);
    expect(b.length).toBeGreaterThan(1);
    // The second answer depends on the first turn.
    expect(other.stdout).not.toBe(b);
    expect(undone.stdout).toBe(a + b + b);
    expect(reset.stdout).toBe(a + other.stdout);
  });

  it('the system prompt survives /undo and /reset', async () => {
    const system = ['--system', 'the old man'];
    const [plain, told, undone, reset] = await Promise.all([
      chat(['the cat']),
      chat(['the cat'], ...system),
      chat(['/undo', 'the cat'], ...system),
      chat(['a dog', '/reset', 'the cat'], ...system),
    ]);
    expect(told.stdout).not.toBe(plain.stdout);
    expect(undone.stdout).toBe(told.stdout);
    expect(undone.stderr).toContain('there is nothing to undo');
    expect(reset.stdout.endsWith(told.stdout)).toBe(true);
  });

  it('says what the commands are', async () => {
    const { stdout, stderr } = await chat(['/what']);
    expect(stdout).toBe('');
    expect(stderr).toContain('/reset');
  });

  it('refuses more than the context holds, and goes on', async () => {
    const { stdout, stderr } = await chat(['the cat '.repeat(4096), 'a dog']);
    expect(stderr).toContain('longer than the context');
    expect(stdout).toBe((await chat(['a dog'])).stdout);
  });

  it('is ended by Ctrl-C where no one is there to go on', async () => {
    let isStopped = false;
    const { code, stdout } = await asa(
      [
        ...['chat', '--model', model, '--seed', '3', '--max-tokens', '1e6'],
        ...['--logit-bias', '1=-inf', '--logit-bias', '6=-inf'],
      ],
      {
        input: 'the cat\na dog\n',
        onOutput(child, text) {
          if (isStopped || text.startsWith('asa: ')) return;
          isStopped = true;
          child.kill('SIGINT');
        },
      },
    );
    expect(code).toBe(130);
    expect(stdout.endsWith('\n')).toBe(true);
  });
});

describe('eval perplexity', () => {
  const evaluate = (...more: string[]) =>
    asa(['eval', 'perplexity', '--model', model, ...more]);

  it('--json prints the documented numbers', async () => {
    const { code, stdout } = await evaluate('--data', path('text'), '--json');
    expect(code).toBe(0);
    const result = JSON.parse(stdout);
    for (const name of ['bitsPerByte', 'perplexity', 'standardError']) {
      expect(result[name]).toBeGreaterThan(0);
    }
    expect(result.tokens).toBeGreaterThan(1000);
    expect(result.bytes).toBe(
      [1, 2, 3]
        .map((name) => readFileSync(path('text', `${name}.txt`)).length)
        .reduce((sum, size) => sum + size),
    );
    expect(result.bitsPerByte).toBeCloseTo(
      (Math.log2(result.perplexity) * result.tokens) / result.bytes,
      10,
    );
  });

  it('--characters takes the start of every file', async () => {
    const { stdout } = await evaluate(
      ...['--data', path('text', '1.txt'), path('text', '2.txt')],
      ...['--characters', '100', '--json'],
    );
    expect(JSON.parse(stdout)).toMatchObject({
      bytes: 200,
      units: 'documents',
    });
  });

  it('prints a line for people', async () => {
    const { stdout } = await evaluate(
      ...['--data', path('text', '1.txt'), '--characters', '50'],
    );
    expect(stdout).toMatch(
      /^\d\.\d{4} bits a byte, perplexity [\d.]+, loss [\d.]+ nats a token over \d+ tokens\n$/,
    );
  });

  it('is ended by Ctrl-C', async () => {
    const data = Array.from({ length: 400 }, () => path('text', '1.txt'));
    const { code, stdout } = await asa(
      ['eval', 'perplexity', '--model', model, '--data', ...data],
      {
        onOutput(child, text) {
          if (!text.includes('backend cpu')) return;
          setTimeout(() => child.kill('SIGINT'), 700);
        },
      },
    );
    expect({ code, stdout }).toEqual({ code: 130, stdout: '' });
  });

  it.each([
    ['no data', [], "required option '--data"],
    ['a context beyond the model', ['--context', '9999'], '4096'],
  ])('refuses %s', async (_, args, rule) => {
    const data = args.length > 0 ? ['--data', path('text')] : [];
    const { code, stdout, stderr } = await evaluate(...data, ...args);
    expect({ code, stdout }).toEqual({ code: 2, stdout: '' });
    expect(stderr).toContain(rule);
  });
});

describe('convert', () => {
  const weights = (folder: string) =>
    readFileSync(path(folder, 'model.safetensors'));

  it('bf16 in shards, and back, keeps what bf16 holds', async () => {
    const steps = [
      ['model', 'bf16', '--dtype', 'bf16', '--max-shard-size', '20KB'],
      ['bf16', 'same'],
      ['same', 'f32', '--dtype', 'f32'],
      ['f32', 'again', '--dtype', 'bf16'],
    ];
    for (const [from = '', to = '', ...options] of steps) {
      const { code, stdout, stderr } = await asa([
        ...['convert', path(from), path(to), ...options],
      ]);
      expect(code, stderr).toBe(0);
      expect(stdout).toBe('');
    }
    const shards = readdirSync(path('bf16')).filter((name) =>
      /^model-\d{5}-of-\d{5}\.safetensors$/.test(name),
    );
    expect(shards.length).toBeGreaterThan(1);
    // Without --dtype the type stays; bf16 through f32 is bf16 again.
    expect(weights('again').equals(weights('same'))).toBe(true);
    expect(weights('again').length).toBeLessThan(0.6 * weights('model').length);
    expect(weights('f32').length).toBe(weights('model').length);
    for (const name of ['tokenizer.json', 'tokenizer_config.json']) {
      expect(readFileSync(path('again', name))).toEqual(
        readFileSync(path('model', name)),
      );
    }
    const generated = await Promise.all(
      ['bf16', 'again'].map((name) =>
        asa([
          ...['generate', '--model', path(name), '--prompt', 'the', '--greedy'],
          ...['--max-tokens', '20'],
        ]),
      ),
    );
    expect(generated[0]?.code).toBe(0);
    expect(generated[0]?.stdout).toBe(generated[1]?.stdout);
  });

  it('refuses to write over a model, or over its source', async () => {
    const copy = ['convert', model, path('copy')];
    expect((await asa(copy)).code).toBe(0);
    const before = weights('copy');
    const again = await asa([...copy, '--dtype', 'f16']);
    expect(again.code).toBe(2);
    expect(again.stderr).toContain('--overwrite');
    expect(weights('copy').equals(before)).toBe(true);
    const over = await asa([...copy, '--dtype', 'f16', '--overwrite']);
    expect(over.code).toBe(0);
    expect(weights('copy').equals(before)).toBe(false);
    const self = await asa(['convert', model, `${model}/`, '--overwrite']);
    expect(self.code).toBe(2);
  });
});

describe('inspect', () => {
  it('--json counts what the weights hold', async () => {
    const { code, stdout } = await asa(['inspect', model, '--json', '--kv']);
    expect(code).toBe(0);
    const report = JSON.parse(stdout);
    expect(report.model).toBe(model);
    // Four bytes a parameter, and the header.
    const { length } = readFileSync(path('model', 'model.safetensors'));
    expect(report.parameters.total).toBeGreaterThan((length - 8192) / 4);
    expect(report.parameters.total).toBeLessThan(length / 4);
    expect(report.flopsPerToken).toMatchObject({
      context: 4096,
      total: expect.any(Number),
    });
    expect(report.kv).toHaveLength(7);
  });

  it('--kv shows that the 340m preset keeps a quarter of NSA', async () => {
    const { code, stdout } = await asa([
      ...['inspect', '--preset', '340m', '--kv', '--json'],
    ]);
    expect(code).toBe(0);
    const last = JSON.parse(stdout).kv.at(-1);
    expect(last.tokens).toBe(131_072);
    expect(last.caches['340m-nsa'].ofNsa).toBe(100);
    expect(last.caches['340m-asa, ring'].ofNsa).toBeLessThan(50);
    const text = await asa(['inspect', '--preset', '340m', '--kv']);
    expect(text.stdout).toMatch(/^128k tokens /m);
  });

  it('refuses an unknown preset, and a preset beside a model', async () => {
    const unknown = await asa(['inspect', '--preset', 'huge']);
    expect(unknown.code).toBe(2);
    expect(unknown.stderr).toContain('340m');
    const both = await asa(['inspect', model, '--preset', 'tiny']);
    expect(both.code).toBe(2);
  });
});
