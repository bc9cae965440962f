import type { Engine, GenerateEvent } from '@asa/core';
import { Command } from '@commander-js/extra-typings';
import { exitCode, UsageError } from '../exit';
import { interruptible } from '../interrupt';
import {
  backendOption,
  dtypeOption,
  modelOption,
  withEngine,
} from '../open-model';
import { readInput, textLimit } from '../read-input';
import { checkLogitBias, samplingOf, withSampling } from '../sampling';
import { formatBytes, formatNumber, note } from '../terminal';
import { integer } from '../values';

const defaultTokens = 200;

export const command = withSampling(
  new Command('generate')
    .description('Continues a text, token by token, on standard output.')
    .addOption(modelOption)
    .option(
      '--prompt <text>',
      'text to continue; "-" or nothing reads standard input',
    ),
)
  .option(
    '--context <n>',
    "tokens that are kept; the model's when left out",
    integer({ min: 1 }),
  )
  .addOption(dtypeOption)
  .addOption(backendOption)
  .option('--json', 'print each token and the summary as a line of JSON')
  .option('--stats', 'print speed and memory on standard error')
  .addHelpText(
    'after',
    `
With --prompt, standard input is not read. Up to ${defaultTokens} tokens are generated
unless --max-tokens says otherwise.

Examples:
  asa generate --prompt "Once upon a time"
  echo "Dear Sir," | asa generate --greedy --max-tokens 50`,
  )
  .action(async (options) => {
    const { prompt } = options;
    if (prompt === undefined && process.stdin.isTTY) {
      throw new UsageError(
        'give a text to continue, by --prompt or on standard input',
      );
    }
    await withEngine(options, async (engine) => {
      checkLogitBias(options, engine.config.vocabularySize);
      const capacity = capacityOf(engine, options.context);
      const tokens = await promptTokens(engine, prompt, capacity);
      const request = {
        ...samplingOf(options),
        prompt: tokens,
        maxTokens: options.maxTokens ?? defaultTokens,
      };
      const room = capacity - tokens.length;
      if (options.maxTokens !== undefined && options.maxTokens > room) {
        note(`--max-tokens: clipped to ${room}, the room in the context`);
      }
      const session = engine.session({ capacity });
      const end = await interruptible((signal) =>
        stream(engine.generate(session, { ...request, signal }), options.json),
      );
      if (options.stats) showStats(end);
      if (end.reason === 'abort') process.exitCode = exitCode.interrupted;
    });
  });

function capacityOf({ config }: Engine, asked: number | undefined): number {
  const { context } = config;
  if (asked !== undefined && asked > context) {
    throw new UsageError(
      `--context: must be at most the model's ${context}, got ${asked}`,
    );
  }
  return asked ?? context;
}

/** The prompt's ids; a start token where there is no text at all. */
async function promptTokens(
  { tokenizer, config }: Engine,
  given: string | undefined,
  capacity: number,
): Promise<ArrayLike<number>> {
  if (!tokenizer) {
    throw new UsageError('--model: the folder has no tokenizer.json');
  }
  const prompt =
    given === undefined || given === '-'
      ? await readInput(textLimit(tokenizer, capacity))
      : given;
  const tokens = tokenizer.encode(prompt);
  if (tokens.length > capacity) {
    throw new UsageError(
      `the prompt must fit in the context of ${capacity} tokens, got ${tokens.length}`,
    );
  }
  if (tokens.length > 0) return tokens;
  const start = config.bos ?? tokenizer.bosId ?? config.eos[0];
  if (start === undefined) {
    throw new UsageError(
      'the prompt is empty, and the model has no start token',
    );
  }
  return [start];
}

type EndEvent = Extract<GenerateEvent, { reason: unknown }>;

/** Writes text as it comes; returns how it ended. */
async function stream(
  events: AsyncIterable<GenerateEvent>,
  json: true | undefined,
): Promise<EndEvent> {
  let end: EndEvent | undefined;
  for await (const event of events) {
    await write(json ? `${JSON.stringify(event)}\n` : event.text);
    if ('reason' in event) end = event;
  }
  if (!json) await write('\n');
  if (!end) throw new Error('internal: a generation without an end');
  return end;
}

/** Waits where the reader is slow, so that nothing piles up here. */
function write(text: string): Promise<void> | undefined {
  if (text === '' || process.stdout.write(text)) return;
  return new Promise((resolve) => process.stdout.once('drain', resolve));
}

function showStats({ timings, memory, reason }: EndEvent): void {
  const { promptTokens, promptMs, generatedTokens, generateMs } = timings;
  const rate = (tokens: number, ms: number) =>
    `${formatNumber((1000 * tokens) / Math.max(ms, 1e-3))} tokens/s`;
  note(
    [
      `prompt ${promptTokens} tokens, ${rate(promptTokens, promptMs)}`,
      `generated ${generatedTokens} tokens, ${rate(generatedTokens, generateMs)}`,
      `first token after ${formatNumber(timings.timeToFirstTokenMs ?? 0)} ms`,
      `peak memory ${formatBytes(memory.peakBytes)}`,
      `ended by ${reason}`,
    ].join('; '),
  );
}
