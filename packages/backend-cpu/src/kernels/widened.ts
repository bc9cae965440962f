import {
  type Allocation,
  type KernelTable,
  type OperatorName,
  operators,
  Tensor,
} from '@asa/core';
import { Memory } from '../memory';
import { type Floats, isHalf, readable, store } from './operands';

type Operands = Readonly<Record<string, Tensor | undefined>>;
type AnyKernel = (
  inputs: Operands,
  outputs: Operands,
  attributes: unknown,
) => void;

/**
 * The same kernels for 16-bit operands: they are widened to f32 before, and
 * what a kernel writes is rounded to nearest even once, when it is done.
 */
export function widened<Table extends KernelTable>(table: Table): Table {
  return Object.fromEntries(
    Object.entries(table).map(([name, kernel]) => {
      const operator: { readonly mutates?: readonly string[] } =
        operators[name as OperatorName];
      return [name, wrap(kernel as AnyKernel, operator.mutates)];
    }),
  ) as unknown as Table;
}

function wrap(kernel: AnyKernel, mutates: readonly string[] = []): AnyKernel {
  return (inputs, outputs, attributes) => {
    const all = [...Object.values(inputs), ...Object.values(outputs)];
    if (!all.some(isHalf)) {
      kernel(inputs, outputs, attributes);
      return;
    }
    const wide = new Map<Allocation, Floats>();
    kernel(widenAll(inputs, wide), widenAll(outputs, wide), attributes);
    const written = [
      ...mutates.map((name) => inputs[name]),
      ...Object.values(outputs),
    ];
    for (const tensor of written) {
      const values = tensor && wide.get(tensor.allocation);
      if (values) store(values, tensor);
    }
  };
}

/** Tensors that share an allocation share its f32 copy. */
function widenAll(operands: Operands, wide: Map<Allocation, Floats>): Operands {
  return Object.fromEntries(
    Object.entries(operands).map(([name, tensor]) => {
      if (!tensor || !isHalf(tensor)) return [name, tensor];
      const values = wide.get(tensor.allocation) ?? readable(tensor);
      wide.set(tensor.allocation, values);
      const storage = new Memory(values, 'f32');
      const allocation = { backend: tensor.backend, storage, freed: false };
      return [name, new Tensor(allocation as Allocation, tensor.shape, 'f32')];
    }),
  );
}
