import {
  type Backend,
  Engine,
  Model,
  modelParameters,
  parseConfig,
  Tokenizer,
  uploadParameters,
} from '@asa/core';

/** GPT-2's letters for bytes, for the few that tests use. */
const letters: Record<number, string> = { 32: 'Ġ', 195: 'Ã', 169: '©' };
const spell = (bytes: Iterable<number>) =>
  [...bytes].map((b) => letters[b] ?? String.fromCharCode(b)).join('');

/** A tokenizer of given pieces, each of UTF-8 text or of raw bytes. */
export function pieceTokenizer(
  pieces: readonly (string | readonly number[])[],
): Tokenizer {
  const spelled = pieces.map((piece) =>
    spell(typeof piece === 'string' ? new TextEncoder().encode(piece) : piece),
  );
  return Tokenizer.fromJson(
    {
      model: {
        type: 'BPE',
        vocab: Object.fromEntries(spelled.map((token, id) => [token, id])),
        merges: [],
      },
      decoder: { type: 'ByteLevel' },
    },
    {},
    'tokenizer.json',
  );
}

/**
 * An engine whose best next token after `t` is `t + 1`, at a logit far above
 * the others: layers that add nothing, and a head that is a shifted identity.
 */
export async function countingEngine(
  backend: Backend,
  vocabularySize: number,
  options: { tokenizer?: Tokenizer; eos?: number[] } = {},
): Promise<{ engine: Engine; model: Model }> {
  const config = parseConfig({
    vocabularySize,
    hiddenSize: vocabularySize,
    intermediateSize: 2,
    layers: 1,
    pattern: 'L',
    attention: {
      L: { kind: 'gqa', heads: 1, keyValueHeads: 1, headWidth: 2, window: 3 },
    },
    context: 64,
    eos: options.eos ?? [],
  });
  const parameters = await uploadParameters(
    backend,
    'f32',
    modelParameters(config),
    async ({ name, shape, init }) => {
      const values = new Float64Array(shape.reduce((a, b) => a * b, 1));
      if ('constant' in init) return values.fill(init.constant);
      const shift = name.startsWith('lm_head') ? 1 : 0;
      if (!/embed_tokens|lm_head/.test(name)) return values;
      for (let t = 0; t < vocabularySize; t++) {
        values[((t + shift) % vocabularySize) * vocabularySize + t] = 1;
      }
      return values;
    },
  );
  const model = new Model(backend, config, parameters);
  return { engine: Engine.from(model, options.tokenizer), model };
}
