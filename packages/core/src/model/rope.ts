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
