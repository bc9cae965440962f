import { ropeFrequencies } from '@asa/core';
import { describe, expect, it } from 'vitest';

describe('ropeFrequencies', () => {
  it('falls from 1 by powers of theta', () => {
    const f = ropeFrequencies({ theta: 10_000, style: 'half' }, 8);
    expect([...f]).toEqual(
      [1, 0.1, 0.01, 0.001].map((x) => expect.closeTo(x, 12)),
    );
  });

  it('is divided by a linear factor', () => {
    const plain = ropeFrequencies({ theta: 100, style: 'half' }, 4);
    const stretched = ropeFrequencies(
      { theta: 100, style: 'half', scaling: { kind: 'linear', factor: 4 } },
      4,
    );
    expect([...stretched]).toEqual([...plain].map((x) => x / 4));
  });

  it('is stretched as Llama 3.1 does', () => {
    const scaling = {
      kind: 'llama3',
      factor: 8,
      lowFrequencyFactor: 1,
      highFrequencyFactor: 4,
      originalContext: 8192,
    } as const;
    const plain = ropeFrequencies({ theta: 500_000, style: 'half' }, 128);
    const f = ropeFrequencies({ theta: 500_000, style: 'half', scaling }, 128);
    plain.forEach((frequency, i) => {
      const wavelength = (2 * Math.PI) / frequency;
      // Short waves stay, long ones turn eight times slower, between is between.
      if (wavelength < 8192 / 4) expect(f[i]).toBeCloseTo(frequency, 12);
      else if (wavelength > 8192) expect(f[i]).toBeCloseTo(frequency / 8, 12);
      else {
        const smooth = (8192 / wavelength - 1) / (4 - 1);
        const want = (1 - smooth) * (frequency / 8) + smooth * frequency;
        expect(f[i]).toBeCloseTo(want, 12);
      }
    });
  });
});
