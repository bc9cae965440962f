import type { Tensor } from '@asa/core';
import { flat, input, output, u32 } from '../launch';
import { extent, type KernelContext } from './context';

const THREADS = 256;

/** `products[row] = x . y` over the last axis, f32. */
export function rowProducts(
  context: KernelContext,
  x: Tensor,
  y: Tensor,
  products: Tensor,
): void {
  // Sixteen threads a row: neighbours read neighbouring channels.
  const rows = THREADS / 16;
  context.run({
    kernel: 'rowProducts',
    constants: { WIDTH: extent(x, 2) },
    bindings: { x: input(x), y: input(y), products: output(products) },
    uniforms: { count: u32(products.size) },
    grid: flat(Math.ceil(products.size / rows)),
    source: () => ({
      threads: THREADS,
      declarations: `var<workgroup> partial: array<f32, ${17 * rows}>;`,
      body: `let row0 = (group.x + group.y * groups.x) * ${rows}u;
let row = row0 + tid / 16u;
var sum = 0.0;
if (row < u.count) {
  for (var c = tid % 16u; c < WIDTH; c += 16u) {
    sum += f32(x[row * WIDTH + c]) * f32(y[row * WIDTH + c]);
  }
}
partial[tid / 16u * 17u + tid % 16u] = sum;
workgroupBarrier();
if (tid >= ${rows}u || row0 + tid >= u.count) { return; }
var all = 0.0;
for (var n = 0u; n < 16u; n++) { all += partial[tid * 17u + n]; }
products[row0 + tid] = all;`,
    }),
  });
}
