// Documents that teach retrieval: something stands somewhere, and far behind it
// comes a place that nothing else can predict. The sentences are those of
// `asa eval needle`; the keys, values and texts are others.
import {
  introduction,
  needleSentence,
  noise,
  question,
} from '../../packages/core/dist/index.js';

const mark = '\u0001';
const marked = (text) => mark + text + mark;

/** The parts of a document, by turns outside and inside of marks. */
export const partsOf = (document) => document.split(mark);

/** Kinds of documents: how they are made, and what facts are about. */
export const kinds = {
  'number in text': { make: haystack, in: 'text', of: 'number' },
  'uuid in text': { make: haystack, in: 'text', of: 'uuid' },
  'number in noise': { make: haystack, in: 'noise', of: 'number' },
  'numbers listed': { make: list, of: 'number' },
  'uuids listed': { make: list, of: 'uuid' },
  'text repeated': { make: repeated },
  'words repeated': { make: wordsRepeated },
};

/**
 * A document of about `characters`.
 * @param source `texts`, strings to lie between; `words`, what keys are made
 *   of; `random`; `isEasy`, for little to choose from, again and again: then
 *   what occurs at all, and what follows on a token, already tells much.
 */
export function retrievalDocument(kind, characters, source) {
  return kind.make(source, characters, kind);
}

/** Facts between the sentences of a text or lines of noise, and questions. */
function haystack(source, characters, kind) {
  const { random } = source;
  const hay = kind.in === 'noise' ? noiseLines() : sentences(source);
  const events = examination(source, characters, kind).map((event) => ({
    ...event,
    text: event.isQuestion
      ? hay.question(asked(event.fact))
      : hay.fact(needleSentence(event.fact)),
  }));
  const said = events.reduce((sum, { text }) => sum + text.length, 0);
  const room = Math.max(0, characters - said);
  let document = `${introduction(kind.of)}\n`;
  let filled = 0;
  for (const { place, text } of events) {
    const fill = hay.take(room * Math.min(place, 1) - filled);
    filled += fill.length;
    document += fill + text;
  }
  // Some texts go on behind the last answer.
  return random.uniform() < 0.2 ? document + hay.take(200) : document;
}

/** A question and its answer; the key comes twice in it. */
function asked({ kind, key, value }) {
  const [start, ...rest] = question({ kind, key }).split(key);
  return `${start}${key}${rest[0]}${marked(`${key}${rest[1]} ${value}.`)}`;
}

/**
 * Facts, and for each one question or more behind it, by `place` from 0 on; in
 * four of ten documents all questions stand at the end, behind 1.
 */
function examination({ random, words }, characters, { of }) {
  // Few facts in most documents, many in some: the log of the share is uniform.
  const share = 0.04 * 20 ** random.uniform();
  const cost = of === 'uuid' ? 330 : 270;
  const count = Math.max(1, Math.floor((share * characters) / cost));
  const areLast = random.uniform() < 0.4;
  return uniqueFacts(count, of, words, random)
    .flatMap((fact) => {
      const place = random.uniform();
      const asked = random.uniform() < 0.3 ? 2 : 1;
      return [
        { fact, place, isQuestion: false },
        ...Array.from({ length: asked }, () => ({
          fact,
          place: areLast
            ? 1 + random.uniform()
            : place + (1 - place) * random.uniform(),
          isQuestion: true,
        })),
      ];
    })
    .sort((a, b) => a.place - b.place);
}

/** Lines `KEY: VALUE.`, and the same lines again in other orders. */
function list({ random, words, isEasy }, characters, { of }) {
  const lines = characters / (of === 'uuid' ? 55 : 25);
  // Twice to eight times all of them.
  const count = isEasy
    ? 1 + random.below(4)
    : Math.ceil(lines / 2 / 4 ** random.uniform());
  const facts = uniqueFacts(count, of, words, random);
  const line = ({ key, value }) => `${key}: ${value}.\n`;
  let document = facts.map(line).join('');
  while (document.length < characters) {
    for (const { key, value } of shuffled(facts, random)) {
      document += `${key}:${marked(` ${value}.`)}\n`;
    }
  }
  return document.slice(0, document.lastIndexOf('\n', characters) + 1);
}

/** A text in which passages, and rows of random words, come again. */
function repeated(source, characters) {
  const { random, words } = source;
  const text = sentences(source);
  const passages = Array.from({ length: 1 + random.below(6) }, () => {
    const length = Math.min(60 * 16 ** random.uniform(), characters / 4);
    const passage = random.uniform() < 0.6 ? text.take(length).trim() : '';
    const row = Array.from({ length: length / 7 }, () => pick(words, random));
    return passage || `${row.join(' ')}.`;
  });
  const known = new Set();
  let document = '';
  while (document.length < characters) {
    const gap = Math.min(100 * 20 ** random.uniform(), characters / 4);
    document += `${text.take(gap)}\n`;
    const passage = pick(passages, random);
    document += known.has(passage) ? again(passage) : `${passage}\n`;
    known.add(passage);
  }
  return document;
}

/** A row of random words, and parts of it again, each behind its first word. */
function wordsRepeated({ words, random, isEasy }, characters) {
  const most = isEasy ? 12 : Math.min(120, characters / 20);
  const count = 4 + random.below(most);
  const row = Array.from({ length: count }, () => pick(words, random));
  let document = `${row.join(' ')}\n`;
  while (document.length < characters) {
    const start = random.below(count - 2);
    const end = start + 3 + random.below(count - start - 2);
    const [first, ...rest] = row.slice(start, end);
    document += `${first}${marked(` ${rest.join(' ')}`)}\n`;
  }
  return document;
}

/** A passage that its first words tell from others. */
function again(passage) {
  const start = passage.indexOf(' ', 12);
  if (start === -1) return `${passage}\n`;
  return `${passage.slice(0, start)}${marked(passage.slice(start))}\n`;
}

/** Text from a random place on, cut behind full stops. */
function sentences({ texts, random }) {
  const text = pick(texts, random);
  const isFlat = random.uniform() < 0.7;
  let cursor = 1 + nextStop(text, random.below(text.length >> 1));
  return {
    fact: (sentence) => ` ${sentence}`,
    question: (asked) => `\n${asked}`,
    take(characters) {
      const stop = text.lastIndexOf('. ', cursor + characters) + 1;
      if (stop <= cursor) return '';
      const taken = text.slice(cursor, stop);
      cursor = stop;
      return isFlat ? taken.replace(/\s+/g, ' ') : taken;
    },
  };
}

const nextStop = (text, from) => Math.max(0, text.indexOf('. ', from));

function noiseLines() {
  const line = `${noise}\n`;
  return {
    fact: (sentence) => `${sentence}\n`,
    question: (asked) => `${asked}\n`,
    take: (characters) =>
      line.repeat(Math.max(0, Math.floor(characters / line.length))),
  };
}

/** Facts with different keys. */
function uniqueFacts(count, kind, words, random) {
  const keys = new Set();
  while (keys.size < count) {
    keys.add(`${pick(words, random)}-${pick(words, random)}`);
  }
  const value = kind === 'uuid' ? uuid : digits;
  return [...keys].map((key) => ({ kind, key, value: value(random) }));
}

const digits = (random) => String(1_000_000 + random.below(9_000_000));

/** The form of a UUID of version 4. */
function uuid(random) {
  return 'xxxxxxxx-xxxx-4xxx-8xxx-xxxxxxxxxxxx'.replace(/[x8]/g, (place) =>
    (place === 'x' ? random.below(16) : 8 + random.below(4)).toString(16),
  );
}

const pick = (values, random) => values[random.below(values.length)];

function shuffled(values, random) {
  return values
    .map((value) => ({ value, order: random.uniform() }))
    .sort((a, b) => a.order - b.order)
    .map(({ value }) => value);
}
