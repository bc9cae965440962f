import {
  ConfigError,
  flopsPerToken,
  kvBytes,
  layerAttention,
  type ModelConfigInput,
  parameterCount,
  parameterReport,
  parseConfig,
  preset,
  presetKinds,
  presetSizes,
} from '@asa/core';
import { describe, expect, it } from 'vitest';

const gla = {
  kind: 'gla',
  heads: 4,
  groups: 2,
  contentWidth: 4,
  valueWidth: 4,
  ropeWidth: 2,
  latentWidth: 6,
  compression: { length: 8, stride: 4 },
  selection: { blockSize: 8, count: 4, sharing: 4 },
} as const;
const mla = {
  kind: 'mla',
  heads: 4,
  contentWidth: 4,
  valueWidth: 4,
  ropeWidth: 2,
  latentWidth: 6,
  window: 16,
} as const;
const base: ModelConfigInput = {
  vocabularySize: 32,
  hiddenSize: 16,
  intermediateSize: 24,
  layers: 4,
  pattern: 'GL',
  attention: { G: gla, L: mla },
  context: 64,
};

describe('parseConfig', () => {
  it('fills in the defaults of maths.md', () => {
    const config = parseConfig(base);
    expect(config.attention.G).toMatchObject({
      compression: { kind: 'mean', rope: 'rotated-mean' },
      selection: { initial: 1, local: 2 },
      gateBias: true,
    });
    expect(config.rope).toEqual({ theta: 10_000, style: 'half' });
  });

  it.each([
    ['G', 'GGGG'],
    ['GL', 'GLGL'],
    ['GLL', 'GLLG'],
    ['L', 'LLLL'],
    [['L', 'L', 'G', 'L'], 'LLGL'],
  ])('repeats the pattern %s over the depth', (pattern, kinds) => {
    const layers = layerAttention(parseConfig({ ...base, pattern }));
    expect(
      layers.map(({ kind }) => (kind === 'gla' ? 'G' : 'L')).join(''),
    ).toBe(kinds);
  });

  const selection = gla.selection;
  const cases: [string, object, string, RegExp][] = [
    [
      'a missing field',
      { hiddenSize: undefined },
      'hiddenSize',
      /expected number/,
    ],
    ['a size of 0', { layers: 0 }, 'layers', />0/],
    ['a negative size', { context: -1 }, 'context', />0/],
    ['a size as text', { vocabularySize: '32' }, 'vocabularySize', /number/],
    ['half a layer', { layers: 1.5 }, 'layers', /int/],
    [
      'a letter without meaning',
      { pattern: 'GX' },
      'pattern',
      /"X" is not in attention/,
    ],
    [
      'an inherited letter',
      { pattern: ['toString', 'L', 'L', 'L'] },
      'pattern',
      /not in attention/,
    ],
    [
      'a list of the wrong length',
      { pattern: ['G'] },
      'pattern',
      /one letter a layer, got 1 for 4/,
    ],
    [
      'an unknown kind',
      { attention: { G: { kind: 'magic' }, L: mla } },
      'attention.G.kind',
      /./,
    ],
    [
      'groups that do not divide heads',
      { attention: { G: { ...gla, groups: 3 }, L: mla } },
      'attention.G.groups',
      /must divide heads, got 3 and 4/,
    ],
    [
      'a window of 0',
      { attention: { G: gla, L: { ...mla, window: 0 } } },
      'attention.L.window',
      />0/,
    ],
    [
      'an odd rotary width',
      { attention: { G: gla, L: { ...mla, ropeWidth: 3 } } },
      'attention.L.ropeWidth',
      /must be even, got 3/,
    ],
    [
      'd that does not divide l',
      {
        attention: {
          G: { ...gla, compression: { length: 8, stride: 3 } },
          L: mla,
        },
      },
      'attention.G.compression.stride',
      /must divide compression.length/,
    ],
    [
      "d that does not divide l'",
      {
        attention: {
          G: { ...gla, selection: { ...selection, blockSize: 6, sharing: 2 } },
          L: mla,
        },
      },
      'attention.G.compression.stride',
      /must divide selection.blockSize/,
    ],
    [
      "r that does not divide l'",
      {
        attention: {
          G: { ...gla, selection: { ...selection, sharing: 3 } },
          L: mla,
        },
      },
      'attention.G.selection.sharing',
      /must divide selection.blockSize, got 3 and 8/,
    ],
    [
      'n below the forced blocks',
      {
        attention: {
          G: { ...gla, selection: { ...selection, count: 2 } },
          L: mla,
        },
      },
      'attention.G.selection.count',
      /initial \+ local = 3, got 2/,
    ],
    [
      'an end token beyond the vocabulary',
      { eos: [32] },
      'eos',
      /beyond the vocabulary of 32/,
    ],
    [
      'a start token beyond the vocabulary',
      { bos: 99 },
      'bos',
      /token 99 is beyond/,
    ],
    [
      'unknown rotary scaling',
      { rope: { scaling: { kind: 'yarn' } } },
      'rope.scaling.kind',
      /./,
    ],
  ];
  it.each(cases)('refuses %s', (_, change, field, rule) => {
    let error: unknown;
    try {
      parseConfig({ ...base, ...change }, 'file.json');
    } catch (caught) {
      error = caught;
    }
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ path: 'file.json', field });
    expect((error as ConfigError).rule).toMatch(rule);
  });

  it.each([[null], [3], ['{}'], [[]]])('refuses %j as a whole', (value) => {
    expect(() => parseConfig(value)).toThrow(ConfigError);
  });
});

describe('preset', () => {
  it.each(presetSizes)('%s has as many parameters of every kind', (size) => {
    const counts = presetKinds.map((kind) =>
      parameterCount(preset(`${size}-${kind}`)),
    );
    const full = counts.at(-1) ?? 0;
    for (const count of counts) {
      expect(Math.abs(count - full) / full).toBeLessThan(0.005);
    }
  });

  it.each([
    ['340m', 330e6, 350e6],
    ['1.3b', 1.15e9, 1.35e9],
    ['tiny', 0.9e6, 1.1e6],
  ])('%s is the size that it is called', (name, least, most) => {
    const count = parameterCount(preset(name));
    expect(count).toBeGreaterThan(least);
    expect(count).toBeLessThan(most);
  });

  it('has latent rows of exactly half of NSA, and at most 27 % with the ring', () => {
    for (const size of presetSizes) {
      const asa = preset(`${size}-asa`);
      const nsa = preset(`${size}-nsa`);
      const at = (tokens: number, ring: boolean) =>
        ({ tokens, dtype: 'f16', ring }) as const;
      expect(kvBytes(asa, at(32_768, false)).tokens * 2).toBe(
        kvBytes(nsa, at(32_768, false)).tokens,
      );
      expect(
        kvBytes(asa, at(32_768, true)).total /
          kvBytes(nsa, at(32_768, true)).total,
      ).toBeLessThanOrEqual(0.27);
    }
  });

  it('takes changes, and refuses what it does not know', () => {
    expect(preset('tiny', { context: 99 }).context).toBe(99);
    expect(() => preset('huge')).toThrow(ConfigError);
    expect(() => preset('tiny-mamba')).toThrow(ConfigError);
    expect(() => preset('tiny', { layers: -1 })).toThrow(ConfigError);
  });
});

describe('reports', () => {
  it('count parameters by part', () => {
    const report = parameterReport(parseConfig(base));
    const { total, ...parts } = report;
    expect(Object.values(parts).reduce((sum, n) => sum + n)).toBe(total);
    expect(report.embedding).toBe(32 * 16);
    expect(report.head).toBe(32 * 16);
    expect(report.feedForward).toBe(4 * 3 * 16 * 24);
    // Two norms a layer and the last one.
    expect(report.norms).toBe((4 * 2 + 1) * 16);
  });

  it('count one token against a definition by hand', () => {
    const config = parseConfig({
      ...base,
      layers: 1,
      pattern: 'F',
      attention: {
        F: { kind: 'gqa', heads: 4, keyValueHeads: 2, headWidth: 4 },
      },
    });
    const attention = 16 * 16 + 2 * 8 * 16 + 16 * 16;
    const { matrices, attention: scores } = flopsPerToken(config, 50);
    expect(matrices).toBe(2 * (attention + 3 * 16 * 24 + 32 * 16));
    expect(scores).toBe(2 * 50 * 4 * (4 + 4));
  });

  it('stop growing with the context where only a window is seen', () => {
    const local = parseConfig({ ...base, pattern: 'L' });
    expect(flopsPerToken(local, 1000).attention).toBe(
      flopsPerToken(local, 16).attention,
    );
    const global = parseConfig({ ...base, pattern: 'G' });
    // Beyond the selected tokens only the compressed rows grow: one a stride.
    const growth =
      flopsPerToken(global, 4000).attention -
      flopsPerToken(global, 2000).attention;
    expect(growth).toBe(4 * 2 * 500 * 4 * (6 + 2 + 6));
  });
});
