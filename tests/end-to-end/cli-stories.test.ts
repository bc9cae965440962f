import { copyFileSync, existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { asa, ended, start, workspace } from './cli-process';

/** Beside the repository on the machines of developers and CI. */
const data = fileURLToPath(new URL('../../../shared/data/', import.meta.url));
const model = join(data, 'stories260k');
const isThere = existsSync(join(model, 'model.safetensors'));

/** What is known of the model: the lines behind `> ` in the data's notes. */
const story = () =>
  readFileSync(join(data, 'README.md'), 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('> '))
    .map((line) => line.slice(2))
    .join('\n');

const greedy = (...more: string[]) => [
  'generate',
  ...['--model', model, '--prompt', 'Once upon a time', '--greedy'],
  ...more,
];

describe.skipIf(!isThere)('a trained model (needs ../shared/data)', () => {
  const { path, remove } = workspace();
  afterAll(remove);

  it('tells the story that is known of it, as text and in JSON', async () => {
    const { code, stdout } = await asa(greedy());
    expect(code).toBe(0);
    expect(story()).toContain('Lily');
    expect(stdout.slice(0, story().length)).toBe(story());
    const json = await asa(greedy('--json'));
    const lines = json.stdout.trimEnd().split('\n');
    const texts = lines.map((line): string => JSON.parse(line).text);
    expect(`${texts.join('')}\n`).toBe(stdout);
  });

  it('writes its first token within five seconds of the start', async () => {
    const began = performance.now();
    let first = Number.POSITIVE_INFINITY;
    await asa(greedy('--max-tokens', '9'), {
      onOutput: (_, text) => {
        if (text.startsWith(',')) first = performance.now() - began;
      },
    });
    expect(first).toBeLessThan(5_000);
  });

  it.each(['f32', 'bf16'])('comes through convert as %s', async (dtype) => {
    const out = path(dtype);
    const { code, stderr } = await asa([
      ...['convert', model, out, '--dtype', dtype],
      ...['--max-shard-size', '200KB'],
    ]);
    expect({ code, stderr }).toEqual({
      code: 0,
      stderr: `asa: wrote ${out}, ${dtype}\n`,
    });
    expect(existsSync(join(out, 'model.safetensors.index.json'))).toBe(true);
    const [before, after] = await Promise.all([
      asa(greedy('--max-tokens', '40')),
      asa(greedy('--max-tokens', '40', '--model', out)),
    ]);
    const same = dtype === 'f32' ? 40 : 5;
    expect(after.code).toBe(0);
    expect(after.stdout.slice(0, same)).toBe(before.stdout.slice(0, same));
    const again = await asa(['convert', model, out]);
    expect(again.code).toBe(2);
    expect(again.stderr).toContain('--overwrite');
  });

  it('leaves standard input alone where there is a prompt', async () => {
    const child = start(greedy('--max-tokens', '1'));
    child.stdout.resume();
    child.stderr.resume();
    // Its end of the pipe stays open.
    expect(await ended(child)).toBe(0);
  });

  it('needs its tokenizer, and a chat template to talk', async () => {
    await asa(['convert', model, path('bare')]);
    const bare = join(path('bare'), 'tokenizer.json');
    copyFileSync(join(model, 'config.json'), bare);
    const broken = await asa(greedy('--model', path('bare')));
    expect(broken.code).toBe(1);
    expect(broken.stderr).toContain(bare);
    const chat = await asa(['chat', '--model', model]);
    expect(chat.code).toBe(2);
    expect(chat.stderr).toContain('chat template');
  });
});
