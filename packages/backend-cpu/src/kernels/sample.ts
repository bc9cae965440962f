import { type Floats, floats, indices, type Kernels } from './operands';

export const sampleKernels: Kernels<'sample'> = {
  /** the token in whose share of the kept probabilities the number falls */
  sample(inputs, outputs, { width }) {
    const logits = floats(inputs.logits);
    const settings = floats(inputs.settings);
    const tokens = indices(outputs.tokens);
    const chosen = floats(outputs.chosen);
    const [rows = 0, vocabulary = 0] = inputs.logits.shape;
    for (let r = 0; r < rows; r++) {
      const row = logits.subarray(r * vocabulary, r * vocabulary + width);
      const isFit = row.every((x) => x < Number.POSITIVE_INFINITY);
      const token = isFit
        ? choose(row, settings.subarray(r * 5, r * 5 + 5))
        : -1;
      tokens[r] = token;
      chosen[2 * r] = token;
      chosen[2 * r + 1] = isFit ? logProbability(row, token) : 0;
    }
  },
};

function choose(row: Floats, settings: Floats): number {
  const [temperature, topK, topP, minP, random] = settings as unknown as [
    number,
    number,
    number,
    number,
    number,
  ];
  const x = (token: number) => row[token] as number;
  const byRank = Array.from(row.keys()).sort((a, b) => x(b) - x(a) || a - b);
  const best = byRank[0] as number;
  if (temperature === 0) return best;
  const weight = (token: number) =>
    Math.exp((x(token) - x(best)) / temperature);
  const few = byRank.slice(0, topK);
  const share = topP * few.reduce((sum, token) => sum + weight(token), 0);
  let sum = 0;
  const kept: number[] = [];
  for (const token of few) {
    if (weight(token) < minP) break;
    kept.push(token);
    sum += weight(token);
    if (topP < 1 && sum >= share) break;
  }
  const there = kept.filter((token) => weight(token) > 0).sort((a, b) => a - b);
  let left = random * sum;
  for (const token of there) {
    left -= weight(token);
    if (left < 0) return token;
  }
  return there.at(-1) as number;
}

/** x[token] - log(sum of exp(x)) */
function logProbability(row: Floats, token: number): number {
  let max = Number.NEGATIVE_INFINITY;
  for (const x of row) max = Math.max(max, x);
  let sum = 0;
  for (const x of row) sum += Math.exp(x - max);
  return (row[token] as number) - max - Math.log(sum);
}
