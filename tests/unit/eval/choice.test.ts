import { openCpu } from '@asa/backend-cpu';
import {
  type Backend,
  type ChoiceItem,
  type ChoiceResult,
  Engine,
  EvaluationFileError,
  evaluateChoices,
  losses,
  type Model,
  parseChoices,
  summarizeChoices,
} from '@asa/core';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { gla, mla, tinyConfig, tinyModel } from '../engine/tiny-models';
import { trainedTokenizer } from '../text/trained';

const { tokenizer } = trainedTokenizer();
const jsonLines = (...lines: object[]) =>
  `${lines.map((line) => JSON.stringify(line)).join('\n')}\n`;

describe('files', () => {
  test('a question and its choices', () => {
    const content = jsonLines(
      { query: 'The tap was open, therefore', choices: ['a', 'b '], gold: 1 },
      { query: 'Question: why?\n', choices: ['so', 'no', 'x'], gold: 2 },
      { query: 'Question: who?\nAnswer:', choices: ['A', 'B'], gold: 0 },
    );
    const item = (context: string, choices: string[], gold: number) => ({
      options: choices.map((continuation) => ({ context, continuation })),
      gold,
    });
    expect(parseChoices(content, 'a.jsonl')).toEqual([
      item('The tap was open, therefore', [' a', ' b'], 1),
      item('Question: why?\nAnswer:', [' so', ' no', ' x'], 2),
      item('Question: who?\nAnswer:', [' A', ' B'], 0),
    ]);
  });

  test('beginnings that differ, and a text to complete', () => {
    const content = jsonLines(
      { context_options: ['Ann ', 'Bob'], continuation: 'won.', gold: 1 },
      { context: 'I do not', continuation: 'care' },
    );
    expect(parseChoices(content, 'w.jsonl')).toEqual([
      {
        options: [
          { context: 'Ann', continuation: ' won.' },
          { context: 'Bob', continuation: ' won.' },
        ],
        gold: 1,
      },
      { options: [{ context: 'I do not', continuation: ' care' }], gold: 0 },
    ]);
  });

  test('six lines an item', () => {
    const content = 'A man\n3\nw.\nx.\ny.\nz.\nA cat\n0\na\nb\nc\nd\n\n';
    const [first, second, ...rest] = parseChoices(content, 'swag.txt');
    expect(rest).toEqual([]);
    expect(first?.gold).toBe(3);
    expect(second?.options.map(({ continuation }) => continuation)).toEqual([
      ' a',
      ' b',
      ' c',
      ' d',
    ]);
  });

  const good = { query: 'q', choices: ['a', 'b'], gold: 0 };
  test.each([
    ['x.jsonl', `${jsonLines(good)}{"query"`, /^x\.jsonl:2: not JSON/],
    ['x.jsonl', jsonLines(good, good, { goal: 'g' }), /^x\.jsonl:3: must have/],
    ['x.jsonl', jsonLines({ ...good, gold: 2 }), /:1: gold must be an index/],
    ['x.jsonl', jsonLines({ ...good, gold: -1 }), /^x\.jsonl:1: /],
    ['x.jsonl', jsonLines({ ...good, choices: ['a'] }), /^x\.jsonl:1: /],
    ['x.jsonl', jsonLines({ ...good, query: ' ' }), /no text may be empty/],
    ['x.jsonl', '\n\n', /^x\.jsonl:1: must hold an item/],
    ['x.jsonl', 'null\n', /^x\.jsonl:1: must have/],
    ['x.txt', 'A\n1\na\nb\nc', /^x\.txt:5: an item must have 6 lines, got 5/],
    ['x.txt', 'A\none\na\nb\nc\nd', /^x\.txt:2: must be the index .* "one"/],
    ['x.txt', 'A\n4\na\nb\nc\nd', /^x\.txt:2: gold must be an index/],
  ])('%s, %j', (path, content, message) => {
    const parse = () => parseChoices(content, path);
    expect(parse).toThrow(EvaluationFileError);
    expect(parse).toThrow(message);
  });
});

let backend: Backend;
let model: Model;
let engine: Engine;
beforeAll(async () => {
  backend = await openCpu({ poison: true });
  const config = tinyConfig(
    'GL',
    { G: gla({ blocks: [4, 4, 8], sharing: 4 }), L: mla(7) },
    { vocabularySize: tokenizer.vocabularySize },
  );
  model = await tinyModel(backend, config);
  engine = Engine.from(model, tokenizer);
});
afterAll(() => engine.free());

const items: ChoiceItem[] = [
  {
    options: ['the', 'rinka motor', 'x'].map((end) => ({
      context: 'the karin mostu',
      continuation: ` ${end}`,
    })),
    gold: 1,
  },
  {
    options: ['a longer start it is than ever', 'one'].map((context) => ({
      context,
      continuation: ' umwha no',
    })),
    gold: 0,
  },
];

async function scores(batch: number): Promise<ChoiceResult[]> {
  const found: ChoiceResult[] = [];
  for await (const result of evaluateChoices(engine, items, { batch })) {
    found.push(result);
  }
  return found;
}

describe('scores', () => {
  test('are the log-likelihoods of the whole texts', async () => {
    const results = await scores(32);
    for (const [i, { options, gold }] of items.entries()) {
      expect(results[i]?.gold).toBe(gold);
      for (const [k, { context, continuation }] of options.entries()) {
        const ids = tokenizer.encode(context + continuation);
        const known = tokenizer.encode(context).length;
        const targets = ids.slice(1).fill(-1, 0, known - 1);
        const nats = await losses(model, [
          { tokens: ids.slice(0, -1), targets },
        ]);
        const want = -nats.reduce((sum, one) => sum + one, 0);
        const got = results[i]?.scores[k];
        expect(got?.logprob).toBeCloseTo(want, 4);
        expect(got?.tokens).toBe(ids.length - known);
        expect(got?.bytes).toBe(continuation.length - 1);
      }
    }
  });

  test('do not depend on what runs beside them', async () => {
    expect(await scores(1)).toEqual(await scores(32));
  });

  test('what the model would say itself is greedy', async () => {
    const context = 'the karin mostu';
    const session = engine.session();
    const prompt = tokenizer.encode(context);
    for await (const event of engine.generate(session, {
      prompt,
      maxTokens: 3,
      temperature: 0,
    }))
      void event;
    const said = tokenizer.decode(session.tokens.subarray(prompt.length));
    session.free();
    const isSame =
      [...tokenizer.encode(said, { addSpecialTokens: false })].length === 3;
    const continuations = [said, ' stu'];
    const item = {
      options: continuations.map((continuation) => ({ context, continuation })),
      gold: 0,
    };
    for await (const result of evaluateChoices(engine, [item])) {
      expect(result.scores.map(({ isGreedy }) => isGreedy)).toEqual([
        isSame,
        false,
      ]);
    }
  });

  test('what is longer than the context is refused', async () => {
    const context = 'the '.repeat(200);
    const long = { options: [{ context, continuation: ' a' }], gold: 0 };
    const run = async () => {
      for await (const result of evaluateChoices(engine, [long])) void result;
    };
    await expect(run()).rejects.toThrow(/at most the model's 160 tokens/);
    expect(engine.memory.cacheBytes).toBe(0);
  });
});

describe('summaries', () => {
  const score = (logprob: number, bytes: number, isGreedy = false) => ({
    logprob,
    bytes,
    tokens: 1,
    isGreedy,
  });

  test('accuracy by likelihood, and by likelihood a byte', () => {
    const results = [
      { scores: [score(-2, 1), score(-3, 9)], gold: 1 },
      { scores: [score(-2, 1), score(-3, 1)], gold: 0 },
      { scores: [score(-8, 8), score(-3, 1), score(-9, 1)], gold: 1 },
    ];
    const { acc, accNorm, chance, perplexity } = summarizeChoices(results);
    expect(acc).toMatchObject({ trials: 3, correct: 2, accuracy: 2 / 3 });
    expect(acc.standardError).toBeCloseTo(1 / 3, 12);
    expect(accNorm?.correct).toBe(2);
    expect(chance).toBeCloseTo((1 / 2 + 1 / 2 + 1 / 3) / 3, 12);
    expect(perplexity).toBeUndefined();
  });

  test('texts to complete: greedy ones, and perplexity a text', () => {
    const found = summarizeChoices([
      { scores: [score(-1, 4, true)], gold: 0 },
      { scores: [score(-3, 4)], gold: 0 },
    ]);
    expect(found.acc.correct).toBe(1);
    expect(found.perplexity).toBeCloseTo(Math.exp(2), 12);
    expect(found.accNorm).toBeUndefined();
  });
});
