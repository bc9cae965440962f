import { floats, type Kernels } from './operands';

export const addKernels: Kernels<'add'> = {
  /** y = a + b */
  add(inputs, outputs) {
    const a = floats(inputs.a);
    const b = floats(inputs.b);
    const y = floats(outputs.y);
    for (let i = 0; i < y.length; i++) {
      y[i] = (a[i] as number) + (b[i] as number);
    }
  },
};
