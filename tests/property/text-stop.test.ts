import { fc, test } from '@fast-check/vitest';
import { expect } from 'vitest';
import { StopMatcher } from '../../packages/core/src/text';

/** Few letters, so that stops overlap, repeat and nearly match. */
const letters = (constraints: fc.StringConstraints) =>
  fc.string({ unit: fc.constantFrom('a', 'b', '🙂'), ...constraints });

/** The whole string at once: first end, then the longest. */
function search(text: string, stops: readonly string[]) {
  for (let end = 1; end <= text.length; end++) {
    const found = stops
      .filter((stop) => text.slice(0, end).endsWith(stop))
      .sort((a, b) => b.length - a.length)[0];
    if (found !== undefined) {
      return { text: text.slice(0, end - found.length), stop: found };
    }
  }
  return { text, stop: undefined };
}

test.prop(
  [
    fc.array(letters({ maxLength: 6 }), { maxLength: 12 }),
    fc.array(letters({ minLength: 1, maxLength: 5 }), { maxLength: 4 }),
  ],
  { numRuns: 2_000 },
)(
  'StopMatcher finds what a search of the whole text finds',
  (pieces, stops) => {
    const matcher = new StopMatcher(stops);
    let emitted = '';
    for (const piece of pieces) {
      emitted += matcher.push(piece);
      expect(stops.some((stop) => emitted.includes(stop))).toBe(false);
    }
    emitted += matcher.end();
    const want = search(pieces.join(''), stops);
    expect({ text: emitted, stop: matcher.matched }).toEqual(want);
  },
);

test.prop([
  letters({ maxLength: 40 }),
  letters({ minLength: 1, maxLength: 6 }),
])(
  'StopMatcher holds back no more than the longest start of a stop',
  (text, stop) => {
    const matcher = new StopMatcher([stop]);
    const emitted = matcher.push(text);
    if (matcher.matched !== undefined) return;
    const held = text.length - emitted.length;
    const starts = Array.from({ length: stop.length }, (_, n) =>
      stop.slice(0, n),
    ).filter((start) => text.endsWith(start));
    expect(held).toBe(Math.max(...starts.map(({ length }) => length)));
  },
);
