import { z } from 'zod';
import { ConfigError } from '../errors';
import { alphabetToBytes } from './byte-alphabet';

/** How the tokens of one vocabulary turn into bytes of UTF-8. */
export interface TokenDecoder {
  /** The bytes of a token, before anything is stripped. */
  bytes(token: string, added: boolean): Uint8Array;
  /** What is cut from the start of the whole text. */
  readonly strip: LeadingStrip;
}

/** Up to `count` times `content` is cut from the start of the text. */
export interface LeadingStrip {
  readonly content: string;
  readonly count: number;
  /** Cut from the first token alone, even if it is shorter than `count`. */
  readonly firstTokenOnly: boolean;
}

/** One step for one token: text to text, or text to its final bytes. */
type Step = (token: string, added: boolean) => string | Uint8Array;

interface Steps {
  readonly steps: Step[];
  strip: LeadingStrip;
  fused: boolean;
}

const stepSchema = z.discriminatedUnion('type', [
  z.object({ type: z.literal('ByteLevel') }),
  z.object({ type: z.literal('ByteFallback') }),
  z.object({ type: z.literal('Fuse') }),
  z.object({
    type: z.literal('Replace'),
    pattern: z.object({ String: z.string().min(1) }),
    content: z.string(),
  }),
  z.object({
    type: z.literal('Metaspace'),
    replacement: z.string().length(1).default('▁'),
    prepend_scheme: z.enum(['always', 'first', 'never']).default('always'),
  }),
  z.object({
    type: z.literal('Strip'),
    content: z.string().length(1),
    start: z.int().nonnegative().default(0),
    stop: z
      .literal(0, 'stripping the end is not supported, a stream has none')
      .default(0),
  }),
]);

const sequenceSchema = z.object({
  type: z.literal('Sequence'),
  decoders: z.array(stepSchema),
});

const NOTHING: LeadingStrip = { content: ' ', count: 0, firstTokenOnly: false };
const utf8 = new TextEncoder();

/**
 * Compiles the `decoder` of a `tokenizer.json`, token by token: every decoder
 * that is supported joins the bytes of its tokens, so that a stream of tokens
 * gives the text of the whole.
 *
 * @throws ConfigError if the decoder is unknown or looks across tokens.
 */
export function compileDecoder(decoder: unknown, path: string): TokenDecoder {
  const schema = z.union([sequenceSchema, stepSchema]);
  const parsed = schema.safeParse(decoder);
  if (!parsed.success) {
    throw new ConfigError(
      path,
      'decoder',
      `must be made of ByteLevel, ByteFallback, Fuse, Replace (of a string), Metaspace and Strip (of the start), got ${JSON.stringify(decoder)?.slice(0, 200)}`,
    );
  }
  const list =
    parsed.data.type === 'Sequence' ? parsed.data.decoders : [parsed.data];
  const compiled: Steps = { steps: [], strip: NOTHING, fused: false };
  for (const step of list) addStep(compiled, step, path);
  const { steps, strip } = compiled;
  return { strip, bytes: (token, added) => run(steps, token, added) };
}

function addStep(
  compiled: Steps,
  step: z.infer<typeof stepSchema>,
  path: string,
): void {
  // After Fuse there is one text, so a step sees across tokens; before it,
  // Strip would cut every token.
  if (compiled.fused !== (step.type === 'Strip') && step.type !== 'Fuse') {
    throw new ConfigError(
      path,
      'decoder',
      `${step.type} must come ${compiled.fused ? 'before' : 'after'} Fuse`,
    );
  }
  const { steps } = compiled;
  switch (step.type) {
    case 'ByteLevel':
      // Added tokens are plain text in a vocabulary of byte strings.
      steps.push((token, added) =>
        added ? utf8.encode(token) : (alphabetToBytes(token) ?? token),
      );
      break;
    case 'ByteFallback':
      steps.push((token) => {
        const hex = /^<0x([0-9A-Fa-f]{2})>$/.exec(token)?.[1];
        return hex === undefined ? token : Uint8Array.of(parseInt(hex, 16));
      });
      break;
    case 'Replace':
      steps.push((token) =>
        token.split(step.pattern.String).join(step.content),
      );
      break;
    case 'Metaspace':
      steps.push((token) => token.split(step.replacement).join(' '));
      if (step.prepend_scheme !== 'never') {
        compiled.strip = { content: ' ', count: 1, firstTokenOnly: true };
      }
      break;
    case 'Strip':
      compiled.strip = {
        content: step.content,
        count: step.start,
        firstTokenOnly: false,
      };
      break;
    case 'Fuse':
      compiled.fused = true;
  }
}

function run(steps: readonly Step[], token: string, added: boolean) {
  let value: string | Uint8Array = token;
  for (const step of steps) {
    if (typeof value !== 'string') break;
    value = step(value, added);
  }
  return typeof value === 'string' ? utf8.encode(value) : value;
}
