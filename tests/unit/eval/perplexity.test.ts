import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  type Model,
  Scope,
  Tokenizer,
  trainBpe,
} from '@asa/core';
import { beforeAll, describe, expect, test } from 'vitest';
import {
  evaluateDocuments,
  evaluateTexts,
} from '../../../packages/core/src/eval';
import { Documents } from '../../../packages/core/src/train';
import { newModel, tiny } from '../train/models';

let backend: Backend;
let model: Model;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
  model = await newModel(backend);
  // Spread the logits, so that tokens differ in loss.
  const head = model.parameters.get('lm_head.weight')!;
  const data = await backend.read(head.storage);
  backend.write(
    head.storage,
    Float32Array.from(data, (x) => 40 * x),
  );
});

const ids = (length: number, seed: number) =>
  Array.from({ length }, (_, i) => (i * i * seed + i + seed) % 13);

/** `-log p(ids[at] | ids[from .. at - 1])`, from the logits. */
async function nats(tokens: number[], from: number, at: number) {
  const scope = new Scope(backend);
  const batch = model.batch([{ tokens: tokens.slice(from, at) }]);
  const all = await scope.read(
    model.logits(scope, model.forward(scope, batch)),
  );
  scope.free();
  batch.free();
  const logits = [...all.subarray(-13)];
  const sum = logits.reduce((total, x) => total + Math.exp(x), 0);
  return Math.log(sum) - logits[tokens[at]!]!;
}

describe('windows', () => {
  const document = ids(15, 3);

  test.each([
    ['side by side', 6, 6, (at: number) => 6 * Math.floor((at - 1) / 6)],
    // Windows start at 0, 2, 4, ...; each predicts what is new in it.
    ['sliding', 6, 2, (at: number) => 2 * Math.max(0, Math.ceil((at - 6) / 2))],
    ['one', 16, 16, () => 0],
    ['token by token', 4, 1, (at: number) => Math.max(0, at - 4)],
  ])('%s', async (_, context, stride, start) => {
    let want = 0;
    for (let at = 1; at < 15; at++) want += await nats(document, start(at), at);
    for (const rows of [1, 3, 100]) {
      const found = await evaluateDocuments(model, Documents.of([document]), {
        context,
        stride,
        rows,
      });
      expect(found.tokens).toBe(14);
      expect(found.loss).toBeCloseTo(want / 14, 5);
      expect(found.perplexity).toBeCloseTo(Math.exp(want / 14), 4);
    }
  });
});

test('several documents: weighted by tokens, error over documents', async () => {
  const documents = [ids(9, 2), ids(4, 5), ids(13, 7), [1], []];
  const alone = [];
  for (const document of documents.slice(0, 3)) {
    alone.push(await evaluateDocuments(model, Documents.of([document])));
  }
  const all = await evaluateDocuments(model, Documents.of(documents), {
    bytesOf: (id) => id + 1,
  });
  expect(all.tokens).toBe(8 + 3 + 12);
  const total = alone.reduce((sum, { loss, tokens }) => sum + loss * tokens, 0);
  expect(all.loss).toBeCloseTo(total / 23, 12);
  expect(all.units).toBe('documents');
  const squares = alone.reduce(
    (sum, { loss, tokens }) => sum + (loss * tokens - all.loss * tokens) ** 2,
    0,
  );
  expect(all.standardError).toBeCloseTo(Math.sqrt(1.5 * squares) / 23, 12);
  const bytes = documents
    .flatMap((document) => document.slice(1))
    .reduce((sum, id) => sum + id + 1, 0);
  expect(all.bytes).toBe(bytes);
  expect(all.bitsPerByte).toBeCloseTo(total / bytes / Math.LN2, 12);
  expect(all.bitsPerByteError).toBeGreaterThan(0);
});

test('one document: error over windows; one window: none to tell', async () => {
  const one = Documents.of([ids(16, 3)]);
  const several = await evaluateDocuments(model, one, { context: 4 });
  expect(several.units).toBe('windows');
  expect(several.standardError).toBeGreaterThan(0);
  expect(several.bitsPerByte).toBeUndefined();
  expect((await evaluateDocuments(model, one)).standardError).toBeNaN();
});

test('frees what it used, and stops when told to', async () => {
  const documents = Documents.of([ids(60, 3)]);
  await evaluateDocuments(model, documents);
  const before = backend.memory().bytesInUse;
  await evaluateDocuments(model, documents, { rows: 2 });
  expect(backend.memory().bytesInUse).toBe(before);
  const signal = AbortSignal.abort(new Error('enough'));
  await expect(evaluateDocuments(model, documents, { signal })).rejects.toThrow(
    'enough',
  );
});

test.each([
  [{ context: 17 }, /context must be an integer from 1 to 16, got 17/],
  [{ context: 0 }, /context must/],
  [{ context: 8, stride: 9 }, /stride must be an integer from 1 to 8, got 9/],
  [{ rows: 0.5 }, /rows must/],
])('refuses %j', async (options, message) => {
  await expect(
    evaluateDocuments(model, Documents.of([ids(9, 1)]), options),
  ).rejects.toThrow(message);
});

test('refuses documents without a token to predict', async () => {
  await expect(
    evaluateDocuments(model, Documents.of([[1], []])),
  ).rejects.toThrow(/at least 2 tokens/);
});

test('texts: bytes are UTF-8 bytes, and the start token predicts the first', async () => {
  const texts = ['a cat, the cat', 'ä 猫'];
  const { tokenizerJson, tokenizerConfig } = trainBpe(texts, {
    vocabularySize: 266,
  });
  const tokenizer = Tokenizer.fromJson(tokenizerJson, tokenizerConfig, 'test');
  const speller = await newModel(backend, tiny({ vocabularySize: 266 }));
  const found = await evaluateTexts(speller, tokenizer, texts);
  expect(tokenizer.bosId).toBeDefined();
  expect(found.bytes).toBe(14 + 6);
  const tokens = texts.flatMap((text) => [
    ...tokenizer.encode(text, { addSpecialTokens: false }),
  ]);
  expect(found.tokens).toBe(tokens.length);
  const bits = (found.loss * found.tokens) / Math.LN2;
  expect(found.bitsPerByte).toBeCloseTo(bits / 20, 12);
  expect(found.loss).toBeCloseTo(Math.log(266), 1);
});
