import { describe, expect, it } from 'vitest';
import { ArgumentError, ConfigError } from '../../../packages/core/src/errors';
import { WorkerTemplateRunner } from '../../../packages/core/src/node/template-runner';
import { renderChat } from '../../../packages/core/src/text';
import { cpuTime } from '../cpu-time';
import { trainedTokenizer } from './trained';

const runner = new WorkerTemplateRunner();
const messages = [
  { role: 'system', content: 'Be brief.' },
  { role: 'user', content: 'Hi {{ bos_token }}' },
];
const fails = async (template: string, by = runner) => {
  const error: unknown = await renderChat(template, messages, {
    runner: by,
    path: 'dir/tokenizer_config.json',
  }).catch((reason: unknown) => reason);
  expect(error).toBeInstanceOf(ConfigError);
  const { message } = error as ConfigError;
  expect(message).toMatch(/^dir\/tokenizer_config\.json: chat_template: /);
  return message;
};

describe('renderChat', () => {
  it('writes a conversation with the template of a trained tokenizer', async () => {
    const { tokenizer } = trainedTokenizer();
    const template = tokenizer.chatTemplate ?? '';
    const text = await renderChat(template, messages, {
      runner,
      bosToken: '<s>',
    });
    expect(text).toBe(
      '<s><|system|>\nBe brief.<|end|>\n<|user|>\nHi {{ bos_token }}<|end|>\n<|assistant|>\n',
    );
    const ids = tokenizer.encode(text, { addSpecialTokens: false });
    expect([ids[0], ids[1]]).toEqual([0, 3]);
    const complete = { runner, addGenerationPrompt: false };
    expect(await renderChat(template, messages, complete)).toMatch(
      /<\|end\|>\n$/,
    );
    const tool = [{ role: 'tool', content: '1' }];
    await expect(renderChat(template, tool, { runner })).rejects.toThrow(
      /a role must be system, user or assistant, got tool/,
    );
  });

  it('ends a template that loops for ever', async () => {
    const loop =
      '{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}';
    const short = new WorkerTemplateRunner({ deadline: 200 });
    const started = cpuTime();
    expect(await fails(loop, short)).toMatch(/within 200 ms/);
    expect(cpuTime() - started).toBeLessThan(2_000);
  });

  it('says what is wrong with a template', async () => {
    expect(await fails('{% for %}')).toMatch(/the template failed, /);
    expect(await fails("{{ raise_exception('no roles') }}")).toMatch(
      /no roles/,
    );
  });

  it('stops a template that writes too much', async () => {
    const small = new WorkerTemplateRunner({ maxLength: 1_000 });
    const row = '{% for a in range(1001) %}x{% endfor %}';
    expect(await fails(row, small)).toMatch(
      /at most 1000 characters, got 1001/,
    );
  });

  it('keeps a template that eats memory from the process', async () => {
    const patient = new WorkerTemplateRunner({ deadline: 30_000 });
    expect(await fails('{{ range(1000000000) }}', patient)).toMatch(
      /the template failed, /,
    );
  }, 40_000);

  it('refuses messages that are none', async () => {
    const wrong = [[], [{ role: 'user' }], [{ role: '', content: '' }], null];
    for (const each of wrong) {
      await expect(
        renderChat('', each as unknown as typeof messages, { runner }),
      ).rejects.toThrow(ArgumentError);
    }
  });
});
