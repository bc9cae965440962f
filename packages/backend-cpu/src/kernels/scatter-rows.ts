import { rowsOf } from './gather-rows';
import { elements, type Kernels } from './operands';

export const scatterRowsKernels: Kernels<'scatterRows'> = {
  /** target[rows[i]] = x[i] */
  scatterRows(inputs) {
    const target = elements(inputs.target);
    const x = elements(inputs.x);
    const { width, at } = rowsOf('scatterRows', inputs.target, inputs.rows);
    at.forEach((row, i) => {
      target.set(x.subarray(i * width, (i + 1) * width), row * width);
    });
  },
};
