import type { LayerContext } from '../layers/context';
import { type RopeStyle, rope } from '../ops/rope';
import type { Scope } from '../scope';
import type { Tensor } from '../tensor';
import type { RopeConfig } from './config';

/**
 * Radians a token of each channel pair, `[width / 2]`:
 * `theta^(-2i / width)`, stretched as the configuration says.
 * Source: RoFormer, arXiv 2104.09864; Llama 3.1's model card for `llama3`.
 */
export function ropeFrequencies(
  { theta, scaling }: RopeConfig,
  width: number,
): Float64Array {
  const frequencies = Float64Array.from(
    { length: width / 2 },
    (_, i) => theta ** ((-2 * i) / width),
  );
  if (!scaling) return frequencies;
  if (scaling.kind === 'linear') {
    return frequencies.map((frequency) => frequency / scaling.factor);
  }
  const { factor, lowFrequencyFactor, highFrequencyFactor } = scaling;
  return frequencies.map((frequency) => {
    // Turns within the context that the model was first trained on.
    const turns = (scaling.originalContext * frequency) / (2 * Math.PI);
    const share =
      (turns - lowFrequencyFactor) / (highFrequencyFactor - lowFrequencyFactor);
    const kept = Math.min(1, Math.max(0, share));
    return kept * frequency + ((1 - kept) * frequency) / factor;
  });
}

/** How layers turn what they make, by `positions` unless they say others. */
export function rotations(
  scope: Scope,
  style: RopeStyle,
  positions: Tensor,
  frequenciesOf: (width: number) => Tensor,
): Pick<LayerContext, 'rotate' | 'rotateMany'> {
  const operands = (x: Tensor, at = positions) => ({
    x,
    positions: at,
    frequencies: frequenciesOf(x.shape[2] ?? 0),
  });
  return {
    rotate: (x, at, inverse = false) =>
      scope.run(rope, operands(x, at), { style, inverse }).y,
    rotateMany: <List extends readonly Tensor[]>(list: readonly [...List]) => {
      const calls = list.map((x) => ({
        inputs: operands(x),
        attributes: { style },
      }));
      const turned = scope.runMany(rope, calls).map(({ y }) => y);
      return turned as readonly Tensor[] as List;
    },
  };
}
