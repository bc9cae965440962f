import { createInterface, type Interface } from 'node:readline';
import {
  type ChatMessage,
  type Engine,
  renderChat,
  type Session,
} from '@asa/core';
import { WorkerTemplateRunner } from '@asa/core/node';
import { Command } from '@commander-js/extra-typings';
import { exitCode, UsageError } from '../exit';
import { interruptible } from '../interrupt';
import {
  backendOption,
  dtypeOption,
  modelOption,
  withEngine,
} from '../open-model';
import { textLimit } from '../read-input';
import { checkLogitBias, samplingOf, withSampling } from '../sampling';
import { colors, note } from '../terminal';

const help = '/reset forgets all, /undo the last turn, /exit or Ctrl-D ends';

export const command = withSampling(
  new Command('chat')
    .description("Talks with a model in its chat template's form.")
    .addOption(modelOption)
    .option('--system <text>', 'what the model is told first'),
)
  .addOption(dtypeOption)
  .addOption(backendOption)
  .addHelpText('after', `\nIn the chat: ${help}.\n\nExample:\n  asa chat`)
  .action((options) =>
    withEngine(options, async (engine) => {
      checkLogitBias(options, engine.config.vocabularySize);
      const chat = new Chat(engine, options.system);
      const { cyan } = colors(process.stderr);
      const isTalk = process.stdin.isTTY === true;
      if (isTalk) note(help);
      const lines = createInterface({
        input: process.stdin,
        output: process.stderr,
        prompt: cyan('> '),
        terminal: isTalk,
      });
      lines.on('SIGINT', () =>
        // At the prompt Ctrl-C ends; during an answer it stops the answer.
        process.listenerCount('SIGINT') > 0
          ? process.emit('SIGINT')
          : leave(lines),
      );
      if (isTalk) lines.prompt();
      for await (const line of lines) {
        if (line.trim() === '/exit') break;
        const isStopped = await answer(chat, line, samplingOf(options));
        if (isTalk) lines.prompt();
        else if (isStopped) {
          process.exitCode = exitCode.interrupted;
          break;
        }
      }
      lines.close();
      // The shell's prompt belongs on a line of its own.
      if (isTalk) process.stderr.write('\n');
    }),
  );

function leave(lines: Interface): void {
  process.exitCode = exitCode.interrupted;
  lines.close();
}

/** @returns whether Ctrl-C stopped an answer. */
async function answer(
  chat: Chat,
  line: string,
  sampling: ReturnType<typeof samplingOf>,
): Promise<boolean> {
  const text = line.trim();
  if (text.startsWith('/')) obey(chat, text);
  if (text === '' || text.startsWith('/')) return false;
  return interruptible(async (signal) => {
    let hasBegun = false;
    for await (const piece of chat.say(text, { ...sampling, signal })) {
      process.stdout.write(piece);
      hasBegun = true;
    }
    if (hasBegun) process.stdout.write('\n');
    return signal.aborted;
  });
}

function obey(chat: Chat, order: string): void {
  if (order === '/reset') chat.reset();
  else if (order !== '/undo') note(help);
  else if (!chat.undo()) note('there is nothing to undo');
}

const tooLong =
  'the conversation is longer than the context; /undo or /reset makes room';

/** A conversation over one session: what was said stays in its cache. */
class Chat {
  private readonly session: Session;
  private messages: ChatMessage[] = [];
  private readonly runner = new WorkerTemplateRunner();
  private readonly template: string;
  /** No more text than this fits, whatever its tokens are. */
  private readonly limit: number;

  constructor(
    private readonly engine: Engine,
    private readonly system: string | undefined,
  ) {
    const { tokenizer } = engine;
    if (tokenizer?.chatTemplate === undefined) {
      throw new UsageError(
        '--model: the folder has no tokenizer with a chat template',
      );
    }
    this.template = tokenizer.chatTemplate;
    this.session = engine.session();
    this.limit = textLimit(tokenizer, this.session.capacity);
    this.reset();
  }

  reset(): void {
    this.session.reset();
    this.messages =
      this.system === undefined
        ? []
        : [{ role: 'system', content: this.system }];
  }

  /** Forgets the last question and its answer. @returns false without one. */
  undo(): boolean {
    const last = this.messages.findLastIndex(({ role }) => role === 'user');
    if (last >= 0) this.messages = this.messages.slice(0, last);
    return last >= 0;
  }

  /** Text of the answer, as it comes. */
  async *say(
    content: string,
    options: ReturnType<typeof samplingOf> & { signal: AbortSignal },
  ): AsyncGenerator<string, void, undefined> {
    const { engine, session } = this;
    if (content.length > this.limit) return note(tooLong);
    const asked = [...this.messages, { role: 'user', content }];
    const tokens = await this.render(asked);
    const room = session.capacity - tokens.length;
    if (room < 1) return note(tooLong);
    // Only what differs from the cached turns runs again.
    const known = commonPrefix(session.tokens, tokens);
    session.rollback(Math.min(known, tokens.length - 1));
    let said = '';
    for await (const event of engine.generate(session, {
      ...options,
      prompt: tokens.subarray(session.length),
      eos: this.endTokens(),
    })) {
      said += event.text;
      yield event.text;
    }
    // A question that Ctrl-C left without any answer was not asked.
    if (options.signal.aborted && said === '') return;
    this.messages = [...asked, { role: 'assistant', content: said }];
  }

  private async render(messages: readonly ChatMessage[]): Promise<Int32Array> {
    const { tokenizer } = this.engine;
    if (!tokenizer) throw new UsageError('chat: the model has no tokenizer');
    const token = (id: number | undefined) =>
      id === undefined ? '' : (tokenizer.token(id) ?? '');
    const text = await renderChat(this.template, messages, {
      runner: this.runner,
      bosToken: token(tokenizer.bosId),
      eosToken: token(tokenizer.eosId),
    });
    return tokenizer.encode(text, { addSpecialTokens: false });
  }

  /** The model's end tokens, and those that end a turn in our own template. */
  private endTokens(): number[] {
    const { tokenizer, config } = this.engine;
    const turn = tokenizer?.idOf('<|end|>');
    const end = tokenizer?.eosId;
    return [...config.eos, turn, end].filter((id) => id !== undefined);
  }
}

function commonPrefix(a: Int32Array, b: Int32Array): number {
  const end = Math.min(a.length, b.length);
  for (let i = 0; i < end; i++) if (a[i] !== b[i]) return i;
  return end;
}
