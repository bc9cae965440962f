import { flat, input, output, u32 } from '../launch';
import { elementwise, type KernelContext, type Kernels } from './context';

const THREADS = 256;

export const gatherRowsKernels = (
  context: KernelContext,
): Kernels<'gatherRows' | 'gatherRowsBackward'> => ({
  /** y[i] = x[rows[i]] */
  gatherRows({ x, rows }, { y }) {
    if (x.size === 0) return;
    const width = x.size / (x.shape[0] ?? 1);
    context.run({
      kernel: 'gatherRows',
      constants: {},
      bindings: { x: input(x), rows: input(rows), y: output(y) },
      uniforms: {
        count: u32(y.size),
        width: u32(width),
        last: u32(x.size / width - 1),
      },
      ...elementwise(
        y.size,
        () =>
          'y[i] = x[min(u32(rows[i / u.width]), u.last) * u.width + i % u.width];',
      ),
    });
  },

  /**
   * dx[r] = sum of dy[i] over rows[i] = r, in the order of i. One workgroup a
   * row r looks for its i, so that no two write one element.
   */
  gatherRowsBackward({ dy, rows }, { dx }, { extent }) {
    if (dx.size === 0) return;
    const width = dx.size / extent;
    context.run({
      kernel: 'gatherRowsBackward',
      constants: {},
      bindings: { dy: input(dy), rows: input(rows), dx: output(dx) },
      uniforms: {
        extent: u32(extent),
        count: u32(rows.size),
        width: u32(width),
      },
      grid: flat(extent),
      source: () => ({
        threads: THREADS,
        declarations: `
// Bit m of hits[n]: row 32 n + m of the stretch is the one looked for.
var<workgroup> hits: array<atomic<u32>, ${THREADS / 32}>;
var<workgroup> any: atomic<u32>;`,
        body: `let r = group.x + group.y * groups.x;
if (r >= u.extent) { return; }
// Columns past the threads take further rounds.
for (var first = 0u; first < u.width; first += ${THREADS}u) {
  let c = first + tid;
  var sum = 0.0;
  for (var base = 0u; base < u.count; base += ${THREADS}u) {
    if (tid == 0u) { atomicStore(&any, 0u); }
    if (tid < ${THREADS / 32}u) { atomicStore(&hits[tid], 0u); }
    workgroupBarrier();
    let i = base + tid;
    if (i < u.count && u32(rows[min(i, u.count - 1u)]) == r) {
      atomicOr(&hits[tid / 32u], 1u << (tid % 32u));
      atomicStore(&any, 1u);
    }
    workgroupBarrier();
    if (atomicLoad(&any) != 0u && c < u.width) {
      for (var n = 0u; n < ${THREADS / 32}u; n++) {
        var bits = atomicLoad(&hits[n]);
        while (bits != 0u) {
          let m = firstTrailingBit(bits);
          bits &= bits - 1u;
          sum += f32(dy[(base + n * 32u + m) * u.width + c]);
        }
      }
    }
    workgroupBarrier();
  }
  if (c < u.width) { dx[r * u.width + c] = t_dx(sum); }
}`,
      }),
    });
  },
});
