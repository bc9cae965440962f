import type { SampleAttributes } from '../ops/sample';
import { type Comparison, fine, wrong } from './comparison';
import type { ValuesByName } from './run-operator';

/**
 * Checks sampled tokens against the rule itself: the token's share of the kept
 * probabilities, in the order of ids, holds the random number. Shares and the
 * bounds of top-p and min-p may be off by `error`, relatively; the best token,
 * which temperature 0 takes, leaves no choice.
 */
export function compareTokens(
  { width }: SampleAttributes,
  { logits, settings }: ValuesByName,
  { tokens, chosen }: ValuesByName,
  error: number,
): Comparison {
  if (!logits || !settings || !tokens || !chosen) {
    return wrong('an output is missing');
  }
  const [rows = 0, vocabulary = 0] = logits.shape;
  for (let r = 0; r < rows; r++) {
    const row = logits.data.slice(r * vocabulary, r * vocabulary + width);
    const token = tokens.data[r] ?? -1;
    const [again = -1, logprob = 0] = chosen.data.slice(2 * r, 2 * r + 2);
    const values = [...settings.data.slice(5 * r, 5 * r + 5)];
    const fault =
      tokenFault([...row], values, token, error) ??
      (again === token ? undefined : `is given once more as ${again}`) ??
      logprobFault([...row], token, logprob, error);
    if (fault) return wrong(`token ${token} of row ${r} ${fault}`);
  }
  return fine;
}

function tokenFault(
  row: readonly number[],
  [
    temperature = 0,
    topK = 1,
    topP = 1,
    minP = 0,
    random = 0,
  ]: readonly number[],
  token: number,
  error: number,
): string | undefined {
  const x = (id: number) => row[id] ?? Number.NEGATIVE_INFINITY;
  if (!(token in row)) return `must lie from 0 to ${row.length - 1}`;
  const byRank = [...row.keys()].sort((a, b) => x(b) - x(a) || a - b);
  const best = byRank[0] ?? 0;
  if (temperature === 0) {
    return token === best ? undefined : `must be ${best}, the best one`;
  }
  const weight = (id: number) => Math.exp((x(id) - x(best)) / temperature);
  const few = byRank.slice(0, topK);
  const all = few.reduce((sum, id) => sum + weight(id), 0);
  const kept: number[] = [];
  let sum = 0;
  for (const id of few) {
    // From here on the last one may be it: top-p is reached, or nearly.
    const isEnough = topP < 1 && sum >= topP * all * (1 - error);
    const isLast = weight(id) < minP * (1 + error);
    if ((isEnough || isLast) && holds(kept, weight, token, random, error)) {
      return undefined;
    }
    if (topP < 1 && sum >= topP * all * (1 + error)) break;
    if (weight(id) < minP * (1 - error)) break;
    kept.push(id);
    sum += weight(id);
  }
  return holds(kept, weight, token, random, error)
    ? undefined
    : `must be the one of the ${kept.length} kept whose share holds ${random}`;
}

/** The token's share of the kept ones' sum holds the number. */
function holds(
  kept: readonly number[],
  weight: (id: number) => number,
  token: number,
  random: number,
  error: number,
): boolean {
  if (!kept.includes(token)) return false;
  let [sum, start] = [0, 0];
  for (const id of [...kept].sort((a, b) => a - b)) {
    if (id === token) start = sum;
    sum += weight(id);
  }
  const slack = error * sum;
  const at = random * sum;
  return start - slack <= at && at <= start + weight(token) + slack;
}

function logprobFault(
  row: readonly number[],
  token: number,
  got: number,
  error: number,
): string | undefined {
  const max = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
  const sum = row.reduce((total, x) => total + Math.exp(x - max), 0);
  const want = (row[token] ?? 0) - max - Math.log(sum);
  const isNear = Math.abs(got - want) <= error * (1 + Math.abs(want));
  return isNear ? undefined : `has log-probability ${got}, must have ${want}`;
}
