// Makes what the default model is trained on: a tokenizer, and tokens of text
// and of documents that teach retrieval.
//
//   node scripts/default-model/prepare.mjs TRAIN_FOLDER HELD_OUT_FOLDER WORK_FOLDER
//
// The folders hold .txt files. Runs on the CPU, in minutes. Build first
// (`npx turbo run build`). --phase short or long makes that one alone, with the
// tokenizer that is there. WORK_FOLDER then holds
//   tokenizer/                tokenizer.json, tokenizer_config.json
//   short.u16, long.u16       tokens of a phase of training, 16 bits each, an
//                             end token behind each document
//   short.counted, …          a byte a token: 1 where it is to be predicted
//   held-out.json             retrieval documents of other texts, other keys
//   prepared.json             what was made of what
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  encodeCorpus,
  Random,
  Tokenizer,
  trainBpe,
} from '../../packages/core/dist/index.js';
import { kinds, partsOf, retrievalDocument } from './retrieval.mjs';

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: {
    scale: { type: 'string', default: '1' },
    seed: { type: 'string', default: '0' },
    phase: { type: 'string', multiple: true, default: ['short', 'long'] },
  },
});
const [train, heldOut, work] = positionals;
if (!work) {
  console.error('prepare: needs TRAIN_FOLDER HELD_OUT_FOLDER WORK_FOLDER');
  process.exit(2);
}
const seed = Number(values.seed);
const scale = Number(values.scale);
const vocabularySize = 4096;
const tokenizerFolder = join(work, 'tokenizer');

/**
 * Tokens of text and of retrieval documents. Each length gets as many tokens,
 * each kind its share. In 1,024 tokens every block of a sparse layer is selected:
 * copying is learned before searching.
 */
const phases = {
  short: {
    text: 1.5e6,
    retrieval: 8e6,
    lengths: [256, 512],
    isEasy: true,
    shares: {
      'words repeated': 0.4,
      'numbers listed': 0.25,
      'number in noise': 0.1,
      'number in text': 0.15,
      'uuids listed': 0.1,
    },
  },
  long: {
    text: 20e6,
    retrieval: 14e6,
    lengths: [512, 1024, 2048, 4096, 8192],
    shares: {
      'number in text': 0.3,
      'number in noise': 0.15,
      'uuid in text': 0.15,
      'numbers listed': 0.15,
      'uuids listed': 0.05,
      'text repeated': 0.1,
      'words repeated': 0.1,
    },
  },
};

const read = (folder) =>
  readdirSync(folder, { recursive: true })
    .filter((name) => name.endsWith('.txt'))
    .sort()
    .map((name) => readFileSync(join(folder, name), 'utf8'));
const texts = read(train);
const heldOutTexts = read(heldOut);
// Half of the words are for training, half for held-out keys.
const words = frequentWords(texts, 8000);
const random = Random.fromSeed(seed);
const source = { texts, words: words.filter((_, i) => i % 2 === 0), random };

mkdirSync(tokenizerFolder, { recursive: true });
const tokenizer = openTokenizer() ?? makeTokenizer();
const made = { seed, scale, vocabularySize, phases: before() };
for (const name of values.phase) {
  const phase = phases[name];
  const text = await encodeSome(texts, phase.text * scale);
  const retrieval = await encodeRetrieval(phase);
  const tokens = new Uint16Array(text.length + retrieval.tokens.length);
  tokens.set(text);
  tokens.set(retrieval.tokens, text.length);
  const counted = new Uint8Array(tokens.length).fill(1);
  counted.set(retrieval.counted, text.length);
  writeFileSync(join(work, `${name}.u16`), new Uint8Array(tokens.buffer));
  writeFileSync(join(work, `${name}.counted`), counted);
  made.phases[name] = {
    textTokens: text.length,
    retrievalTokens: retrieval.tokens.length,
    answerTokens: retrieval.counted.reduce((sum, one) => sum + one, 0),
  };
}
writeFileSync(join(work, 'held-out.json'), JSON.stringify(heldOutDocuments()));
writeFileSync(
  join(work, 'prepared.json'),
  `${JSON.stringify(made, null, 2)}\n`,
);
console.log(JSON.stringify(made));

/** That of an earlier call, so that one phase can be made again. */
function openTokenizer() {
  const file = join(tokenizerFolder, 'tokenizer.json');
  if (!existsSync(file)) return undefined;
  const json = (name) =>
    JSON.parse(readFileSync(join(tokenizerFolder, name), 'utf8'));
  return Tokenizer.fromJson(
    json('tokenizer.json'),
    json('tokenizer_config.json'),
    file,
  );
}

/** What an earlier call made of the phases. */
function before() {
  const file = join(work, 'prepared.json');
  return existsSync(file) ? JSON.parse(readFileSync(file, 'utf8')).phases : {};
}

/** A vocabulary of the text, with the words of the questions in it. */
function makeTokenizer() {
  const questioned = Object.values(kinds).slice(0, 3);
  const shortest = { ...source, random: Random.fromSeed(seed) };
  const forms = Array.from({ length: 8000 }, (_, i) =>
    partsOf(retrievalDocument(questioned[i % 3], 400, shortest)).join(''),
  );
  const { tokenizerJson, tokenizerConfig } = trainBpe([...texts, ...forms], {
    vocabularySize,
  });
  const json = (value) => `${JSON.stringify(value, null, 2)}\n`;
  const file = join(tokenizerFolder, 'tokenizer.json');
  writeFileSync(file, json(tokenizerJson));
  writeFileSync(
    join(tokenizerFolder, 'tokenizer_config.json'),
    json(tokenizerConfig),
  );
  return Tokenizer.fromJson(tokenizerJson, tokenizerConfig, file);
}

/** Whole texts in a random order, up to so many tokens. */
async function encodeSome(texts, count) {
  const order = texts
    .map((text) => ({ text, order: random.uniform() }))
    .sort((a, b) => a.order - b.order);
  let left = count;
  function* some() {
    for (const { text } of order) if (left > 0) yield text;
  }
  return encodeCorpus(tokenizer, some(), {
    onProgress: ({ tokens }) => {
      left = count - tokens;
    },
  });
}

/** Documents of every kind and length, in a random order. */
async function encodeRetrieval({ retrieval, lengths, shares, isEasy }) {
  const how = { ...source, isEasy };
  const plan = Object.entries(shares)
    .flatMap(([name, share]) =>
      lengths.flatMap((length) => {
        const tokens = (share * retrieval * scale) / lengths.length;
        return Array.from({ length: Math.round(tokens / length) }, () => ({
          kind: kinds[name],
          length,
          order: random.uniform(),
        }));
      }),
    )
    .sort((a, b) => a.order - b.order);
  const perToken = new Map(
    Object.values(kinds).map((kind) => [
      kind,
      charactersPerToken(kind, lengths[0]),
    ]),
  );
  const parts = [];
  function* documents() {
    for (const { kind, length } of plan) {
      const characters = 0.95 * length * perToken.get(kind);
      const document = partsOf(retrievalDocument(kind, characters, how));
      parts.push(document);
      yield document.join('');
    }
  }
  const tokens = await encodeCorpus(tokenizer, documents());
  const found = [];
  let start = 0;
  for (const [i, { length }] of plan.entries()) {
    const end = tokens.indexOf(tokenizer.eosId, start) + 1;
    // What is longer than a row loses its end.
    const part = tokens.slice(start, Math.min(end, start + length + 1));
    found.push({ tokens: part, counted: countedTokens(part, parts[i]) });
    start = end;
  }
  return {
    tokens: joined(found.map(({ tokens }) => tokens)),
    counted: joined(found.map(({ counted }) => counted)),
  };
}

function joined(arrays) {
  const size = arrays.reduce((sum, { length }) => sum + length, 0);
  const all = new arrays[0].constructor(size);
  let at = 0;
  for (const array of arrays) {
    all.set(array, at);
    at += array.length;
  }
  return all;
}

/** 1 for each token that ends inside of a mark. */
function countedTokens(tokens, parts) {
  let end = 0;
  const ends = parts.map((part) => {
    end += Buffer.byteLength(part);
    return end;
  });
  let [byte, part] = [0, 0];
  return Uint8Array.from(tokens, (token) => {
    if (tokenizer.isSpecial(token)) return 0;
    byte += tokenizer.tokenBytes(token).length;
    while (byte > ends[part]) part += 1;
    return part % 2;
  });
}

function charactersPerToken(kind, length) {
  const made = Array.from({ length: 20 }, () =>
    partsOf(retrievalDocument(kind, 3.3 * length, source)).join(''),
  );
  const tokens = made.map((text) => tokenizer.encode(text).length);
  return made.join('').length / tokens.reduce((sum, count) => sum + count);
}

/** Some documents of each kind and length, and what counts of them. */
function heldOutDocuments() {
  const source = {
    texts: heldOutTexts,
    words: words.filter((_, i) => i % 2 === 1),
    random: Random.fromSeed(seed + 1),
  };
  return Object.entries(kinds).flatMap(([name, kind]) =>
    [256, 512, 2048, 8192].flatMap((length) =>
      Array.from({ length: length < 2048 ? 8 : 2 }, () => {
        const characters = 0.9 * length * charactersPerToken(kind, length);
        const parts = partsOf(retrievalDocument(kind, characters, source));
        const ids = tokenizer.encode(parts.join('')).subarray(0, length + 1);
        const counted = countedTokens(ids, parts);
        return {
          kind: name,
          length,
          tokens: [...ids],
          counted: [...counted],
        };
      }),
    ),
  );
}

/** The most frequent words of 3 to 9 small letters. */
function frequentWords(texts, count) {
  const counts = new Map();
  for (const text of texts) {
    for (const [word] of text.matchAll(/\b[a-z]{3,9}\b/g)) {
      counts.set(word, (counts.get(word) ?? 0) + 1);
    }
  }
  return [...counts]
    .sort(([a, n], [b, m]) => m - n || (a < b ? -1 : 1))
    .slice(0, count)
    .map(([word]) => word);
}
