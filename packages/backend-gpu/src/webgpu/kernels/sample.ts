import { flat, input, output, u32 } from '../launch';
import {
  extent,
  type KernelContext,
  type Kernels,
  reductions,
} from './context';

const THREADS = 256;

export const sampleKernels = (context: KernelContext): Kernels<'sample'> => ({
  /**
   * One workgroup a row. Logits are ranked by keys, whole numbers of the same
   * order; the least key that top-k or top-p keeps is found bit by bit, and of
   * the tokens that have it the first ones are kept.
   */
  sample({ logits, settings }, { tokens, chosen }, { width }) {
    context.run({
      kernel: 'sample',
      constants: {},
      bindings: {
        logits: input(logits),
        settings: input(settings),
        tokens: output(tokens),
        chosen: output(chosen),
      },
      uniforms: {
        rows: u32(extent(logits, 0)),
        vocabulary: u32(extent(logits, 1)),
        width: u32(width),
      },
      grid: flat(extent(logits, 0)),
      source: () => ({ threads: THREADS, declarations, body }),
    });
  },
});

const declarations = `${reductions(THREADS)}
var<workgroup> tally: atomic<u32>;
var<workgroup> parts: array<f32, ${THREADS}>;
var<workgroup> ties: array<u32, ${THREADS}>;
const NONE = 0xffffffffu;

fn bitsOf(at: u32) -> u32 { return bitcast<u32>(f32(logits[at])); }
// Neither NaN nor +infinity: their exponent is all ones, and -infinity's too.
fn isFit(bits: u32) -> bool {
  return (bits & 0x7f800000u) != 0x7f800000u || bits == 0xff800000u;
}
// -0 and 0 are one number.
fn keyOf(bits: u32) -> u32 {
  if (bits == 0x80000000u) { return bits; }
  return select(bits | 0x80000000u, ~bits, bits >= 0x80000000u);
}
fn weightOf(key: u32, best: u32, temperature: f32) -> f32 {
  // Keys up to that of -infinity.
  if (key <= 0x007fffffu) { return 0.0; }
  let x = bitcast<f32>(select(~key, key & 0x7fffffffu, key >= 0x80000000u));
  let most = bitcast<f32>(select(~best, best & 0x7fffffffu, best >= 0x80000000u));
  return exp(max((x - most) / temperature, -100.0));
}
// A whole number summed over the threads, least and greatest.
fn countAll(tid: u32, x: u32) -> u32 {
  workgroupBarrier();
  if (tid == 0u) { atomicStore(&tally, 0u); }
  workgroupBarrier();
  atomicAdd(&tally, x);
  workgroupBarrier();
  return atomicLoad(&tally);
}
fn leastOf(tid: u32, x: u32) -> u32 {
  workgroupBarrier();
  if (tid == 0u) { atomicStore(&tally, NONE); }
  workgroupBarrier();
  atomicMin(&tally, x);
  workgroupBarrier();
  return atomicLoad(&tally);
}
fn greatestOf(tid: u32, x: u32) -> u32 { return ~leastOf(tid, ~x); }`;

/** What a thread makes of each of its tokens `i`, neighbours side by side. */
const each = (text: string) =>
  `for (var i = tid; i < u.width; i += ${THREADS}u) {
  let key = keyOf(bitsOf(start + i));
  ${text}
}`;

/** The largest key for which `holds` is true. */
const search = (measure: string, holds: string) => `
  var found = 0u;
  for (var bit = 32u; bit > 0u; bit--) {
    let candidate = found | (1u << (bit - 1u));
    ${measure}
    if (${holds}) { found = candidate; }
  }`;

const body = `let row = group.x + group.y * groups.x;
if (row >= u.rows) { return; }
let start = row * u.vocabulary;
let temperature = settings[row * 5u];
let topK = u32(settings[row * 5u + 1u]);
let topP = settings[row * 5u + 2u];
let minP = settings[row * 5u + 3u];
let random = settings[row * 5u + 4u];

var most = 0u;
var unfit = 0u;
for (var i = tid; i < u.width; i += ${THREADS}u) {
  let bits = bitsOf(start + i);
  most = max(most, keyOf(bits));
  if (!isFit(bits)) { unfit = 1u; }
}
let best = greatestOf(tid, most);
let isBad = countAll(tid, unfit) > 0u;
var first = NONE;
${each('if (key == best) { first = min(first, i); }')}
var token = leastOf(tid, first);
var sum = 0.0;
${each('sum += weightOf(key, best, 1.0);')}
let all = reduceSum(tid, sum);

if (temperature > 0.0) {
  // Top-k: tokens above \`least\`, and the first \`room\` of those at it.
  var least = 0u;
  var room = u.width;
  if (topK < u.width) {
    ${search(
      `var reached = 0u;
    ${each('if (key >= candidate) { reached++; }')}
    let count = countAll(tid, reached);`,
      'count >= topK',
    )}
    least = found;
    var above = 0u;
    ${each('if (key > least) { above++; }')}
    room = topK - countAll(tid, above);
  }
  if (topP < 1.0) {
    var over = 0.0;
    ${each('if (key > least) { over += weightOf(key, best, temperature); }')}
    let above = reduceSum(tid, over);
    var at = 0u;
    ${each('if (key == least) { at++; }')}
    let atLeast = min(room, countAll(tid, at));
    let share = topP * (above + f32(atLeast) * weightOf(least, best, temperature));
    ${search(
      `var part = 0.0;
    ${each('if (key >= candidate) { part += weightOf(key, best, temperature); }')}
    let held = reduceSum(tid, part);`,
      'candidate <= least || held >= share',
    )}
    if (found > least) {
      least = found;
      room = u.width;
    }
    var beyond = 0.0;
    ${each('if (key > least) { beyond += weightOf(key, best, temperature); }')}
    let missing = share - reduceSum(tid, beyond);
    let unit = weightOf(least, best, temperature);
    // As many of the equal ones as it takes, one at least.
    let wanted = ceil(max(missing, 0.0) / max(unit, 1e-38));
    room = min(room, max(1u, u32(min(wanted, 16777216.0))));
  }

  // Each thread has a run of tokens, so that places follow from counts.
  let run = (u.width + ${THREADS - 1}u) / ${THREADS}u;
  let begin = min(tid * run, u.width);
  let to = min(begin + run, u.width);
  var equal = 0u;
  for (var i = begin; i < to; i++) {
    if (keyOf(bitsOf(start + i)) == least) { equal++; }
  }
  ties[tid] = equal;
  workgroupBarrier();
  var before = 0u;
  for (var n = 0u; n < tid; n++) { before += ties[n]; }
  var seen = before;
  var own = 0.0;
  var last = 0u;
  for (var i = begin; i < to; i++) {
    let key = keyOf(bitsOf(start + i));
    var kept = key > least;
    if (key == least) { kept = seen < room; seen++; }
    let weight = weightOf(key, best, temperature);
    if (kept && weight >= minP && weight > 0.0) { own += weight; last = i + 1u; }
  }
  parts[tid] = own;
  workgroupBarrier();
  var earlier = 0.0;
  var total = 0.0;
  for (var n = 0u; n < ${THREADS}u; n++) {
    if (n == tid) { earlier = total; }
    total += parts[n];
  }
  let target_ = random * total;
  var left = target_ - earlier;
  var drawn = NONE;
  seen = before;
  if (last > 0u && left >= 0.0 && left < own) {
    for (var i = begin; i < to; i++) {
      let key = keyOf(bitsOf(start + i));
      var kept = key > least;
      if (key == least) { kept = seen < room; seen++; }
      let weight = weightOf(key, best, temperature);
      if (!(kept && weight >= minP && weight > 0.0)) { continue; }
      left -= weight;
      drawn = i;
      if (left < 0.0) { break; }
    }
  }
  let final_ = greatestOf(tid, last);
  token = leastOf(tid, drawn);
  // The number lies behind the last sum, which was rounded down.
  if (token == NONE) { token = max(final_, 1u) - 1u; }
}
if (tid == 0u) {
  let at = select(i32(token), -1, isBad);
  tokens[row] = at;
  let x = bitcast<f32>(bitsOf(start + min(token, u.width - 1u)));
  let top = bitcast<f32>(select(~best, best & 0x7fffffffu, best >= 0x80000000u));
  chosen[row * 2u] = f32(at);
  chosen[row * 2u + 1u] = select(x - top - log(all), 0.0, isBad);
}`;
