import { floats, indices, type Kernels } from './operands';

export const ropeKernels: Kernels<'rope'> = {
  /**
   * [y1]   [cos -sin] [x1]
   * [y2] = [sin  cos] [x2], angle = position frequency
   */
  rope(inputs, outputs, { style, inverse = false }) {
    const x = floats(inputs.x);
    const y = floats(outputs.y);
    const positions = indices(inputs.positions);
    const frequencies = floats(inputs.frequencies);
    const [rows = 0, heads = 0, width = 0] = inputs.x.shape;
    const pairs = width / 2;
    // Pair i is the channels (i step, i step + apart).
    const [step, apart] = style === 'half' ? [1, pairs] : [2, 1];
    const direction = inverse ? -1 : 1;
    for (let n = 0; n < rows; n++) {
      for (let i = 0; i < pairs; i++) {
        const angle = (positions[n] as number) * (frequencies[i] as number);
        const cos = Math.cos(angle);
        const sin = direction * Math.sin(angle);
        for (let h = 0; h < heads; h++) {
          const first = (n * heads + h) * width + i * step;
          const x1 = x[first] as number;
          const x2 = x[first + apart] as number;
          y[first] = x1 * cos - x2 * sin;
          y[first + apart] = x1 * sin + x2 * cos;
        }
      }
    }
  },
};
