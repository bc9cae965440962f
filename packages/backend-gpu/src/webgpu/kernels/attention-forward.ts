/** The forward pass over a tile of rows, in WGSL. */
import {
  type AttentionShape,
  accumulate,
  partials,
  product,
  putPartial,
  quadOf,
  registers,
  rowOf,
  sources,
  store,
  type Tile,
  tables,
  threadPlace,
  threadsOf,
  times,
  weightsOf,
  workspace,
} from './attention-products';
import { keyTable, rowTable, type View } from './attention-view';
import { sequenceOf, unroll } from './context';

/** Large and negative: what no score is, and no infinity either. */
const LOWEST = '-1e30';

/** o = softmax(scores) v, online: maxima and sums are corrected as they come. */
export function forwardSource(shape: AttentionShape, view: View, tile: Tile) {
  const { perThread } = tile;
  const { valueWidth } = shape;
  const { q, k, v } = sources(shape);
  const columns = registers(valueWidth);
  const rows = (text: (i: number) => string) => unroll(perThread, text);
  return {
    threads: threadsOf(tile),
    declarations: `${sequenceOf}
${view.declarations}
${tables}
${workspace(tile, valueWidth)}
${store(shape, 'storeO', [{ name: 'o', width: 'DV' }])}`,
    body: `let s = sequenceOf(group.z);
let head0 = group.y * HT;
let keyHead = head0 / (H / GK);
${threadPlace}
${view.forward.range}
${rowTable(view, view.forward.row)}
${rows((i) => `var most${i} = ${LOWEST}; var sum${i} = 0.0;`)}
${times([perThread, columns], (i, r) => `var o${i}_${r} = vec4f();`)}
for (var base = first; base < end; base += N) {
  ${keyTable(view)}
  ${times([perThread, 4], (i, j) => `var s${i}_${j} = 0.0;`)}
  ${product(shape, 's', tile, q, k)}
  ${unroll(4, (j) => `let at${j} = keyPosition[4u * tx + ${j}u];`)}
  ${rows(
    (i) => `let first${i} = rowFirst[${rowOf(tile, i)}];
  let last${i} = rowLast[${rowOf(tile, i)}];
  ${unroll(4, (j) => `s${i}_${j} = select(${LOWEST}, s${i}_${j} * u.scale, at${j} >= first${i} && at${j} <= last${i});`)}
  ${putPartial(rowOf(tile, i), `max(max(s${i}_0, s${i}_1), max(s${i}_2, s${i}_3))`)}`,
  )}
  workgroupBarrier();
  ${rows((i) => {
    const [a, b, c, d] = partials(rowOf(tile, i));
    return `{
    let four = max(max(${a}, ${b}), max(${c}, ${d}));
    let top = max(most${i}, max(max(four.x, four.y), max(four.z, four.w)));
    let fade = exp(most${i} - top);
    most${i} = top;
    // A score that is not seen is far below: its exponential is 0, but not
    // where the row has seen nothing at all.
    let p = select(
      exp(vec4f(s${i}_0, s${i}_1, s${i}_2, s${i}_3) - top), vec4f(), top <= ${LOWEST});
    sum${i} = sum${i} * fade + (p.x + p.y + p.z + p.w);
    ${weightsOf(rowOf(tile, i))} = p;
    ${unroll(columns, (r) => `o${i}_${r} *= fade;`)}
  }`;
  })}
  ${accumulate(shape, 'o', tile, v, [0, valueWidth])}
}
workgroupBarrier();
${rows((i) => putPartial(rowOf(tile, i), `sum${i}`))}
workgroupBarrier();
${rows((i) => {
  const row = rowOf(tile, i);
  return `if (rowIsThere[${row}] == 1u) {
  let four = ${partials(row).join(' + ')};
  let total = four.x + four.y + four.z + four.w;
  let isEmpty = total <= 0.0;
  let inverse = select(1.0 / max(total, 1e-37), 0.0, isEmpty);
  let at = rowIndex[${row}];
  if (tx == 0u) {
    lse[at] = select(bitcast<u32>(most${i} + log(max(total, 1e-37))), 0xff800000u, isEmpty);
  }
  ${unroll(columns, (r) => `storeO(at, ${quadOf(0, r)}, o${i}_${r} * inverse);`)}
}`;
})}`,
  };
}
