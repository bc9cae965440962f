import { openCpu } from '@asa/backend-cpu';
import {
  operators,
  Random,
  ropeFrequencies,
  Scope,
  Tape,
  type Tensor,
} from '@asa/core';
import { describe, expect, it } from 'vitest';
import { rotations } from '../../../packages/core/src/model/rope';

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

describe('rotations', () => {
  it('turns several as one by one, with the same gradients', async () => {
    const backend = await openCpu({ poison: true });
    const constants = new Scope(backend);
    const random = Random.fromSeed(5);
    const draw = (...shape: readonly number[]) => {
      const size = shape.reduce((n, extent) => n * extent, 1);
      const values = Float32Array.from({ length: size }, () => random.normal());
      return constants.tensor(values, shape, 'f32');
    };
    const [q, k, narrow] = [draw(3, 2, 8), draw(3, 2, 8), draw(3, 1, 4)];
    const seed = draw(3, 2, 8);
    const positions = constants.indices([3, 70, 1000]);
    const frequencies = new Map(
      [8, 4].map((width) => [width, draw(width / 2)]),
    );

    const turned = async (isMany: boolean) => {
      const tape = new Tape();
      tape.watch(q, k);
      const scope = new Scope(backend, tape);
      const { rotate, rotateMany } = rotations(
        scope,
        'half',
        positions,
        (width) => frequencies.get(width) as Tensor,
      );
      const [a, b, other] = isMany
        ? rotateMany([q, k, narrow])
        : [rotate(q), rotate(k), rotate(narrow)];
      const { y } = scope.run(operators.add, { a, b }, {});
      const gradients = tape.backward(y, seed, [q, k]);
      const tensors = [a, b, other, gradients.get(q), gradients.get(k)];
      return Promise.all(tensors.map((x) => scope.read(x as Tensor)));
    };
    const many = await turned(true);
    expect(many).toEqual(await turned(false));
    expect(many[0]).not.toEqual(await constants.read(q));
  });
});
