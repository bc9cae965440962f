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
import { readInput } from '../read-input';
import { samplingOf, withSampling } from '../sampling';
import { formatBytes, formatNumber, note, print } from '../terminal';
import { integer } from '../values';

const defaultTokens = 200;

export const command = withSampling(
  new Command('generate')
    .description('Continues a text, token by token, on standard output.')
    .addOption(modelOption)
    .option(
      '--prompt <text>',
      'text to continue; "-" or nothing reads standard input when it is piped',
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
    '\nExamples:\n  asa generate --prompt "Once upon a time"\n  echo "Dear Sir," | asa generate --greedy --max-tokens 50',
  )
  .action(async (options) => {
    const prompt = await promptOf(options.prompt);
    await withEngine(options, async (engine) => {
      const capacity = Math.min(
        options.context ?? engine.config.context,
        engine.config.context,
      );
      const request = {
        ...samplingOf(options),
        prompt: tokensOf(engine, prompt, capacity),
        maxTokens: options.maxTokens ?? defaultTokens,
      };
      const session = engine.session({ capacity });
      const room = capacity - request.prompt.length;
      if (request.maxTokens > room && options.maxTokens !== undefined) {
        note(`--max-tokens: the context has room for ${room} tokens`);
      }
      const end = await interruptible((signal) =>
        stream(engine.generate(session, { ...request, signal }), options.json),
      );
      if (options.stats) showStats(end);
      if (end.reason === 'abort') process.exitCode = exitCode.interrupted;
    });
  });

/** What is given, or what is piped in; both, one behind the other. */
async function promptOf(given: string | undefined): Promise<string> {
  if (given !== undefined && given !== '-') return given;
  if (process.stdin.isTTY) {
    if (given === '-') return readInput();
    throw new UsageError('generate: --prompt, or text on standard input');
  }
  return readInput();
}

function tokensOf(
  { tokenizer, config }: Engine,
  prompt: string,
  capacity: number,
): Int32Array {
  if (!tokenizer) {
    throw new UsageError('generate: the model folder has no tokenizer.json');
  }
  const tokens = tokenizer.encode(prompt);
  // A model needs a token to begin with.
  const start = config.bos ?? tokenizer.bosId ?? config.eos[0];
  if (tokens.length === 0 && start === undefined) {
    throw new UsageError('generate: the prompt is empty');
  }
  const ids = tokens.length > 0 ? tokens : Int32Array.of(start ?? 0);
  if (ids.length > capacity) {
    throw new UsageError(
      `generate: the prompt has ${ids.length} tokens, the context ${capacity}`,
    );
  }
  return ids;
}

type EndEvent = Extract<GenerateEvent, { reason: unknown }>;

/** Writes text as it comes; returns how it ended. */
async function stream(
  events: AsyncIterable<GenerateEvent>,
  json: true | undefined,
): Promise<EndEvent> {
  let end: EndEvent | undefined;
  for await (const event of events) {
    if (json) print(JSON.stringify(event));
    else await write(event.text);
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
