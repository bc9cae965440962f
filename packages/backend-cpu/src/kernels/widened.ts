import {
  type Allocation,
  bf16ToF32,
  f16ToF32,
  f32ToBf16,
  f32ToF16,
  type KernelTable,
  type OperatorName,
  operators,
  Tensor,
} from '@asa/core';
import { Memory } from '../memory';
import { elements } from './operands';

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
    const wide = new Map<Allocation, Float32Array>();
    kernel(widenAll(inputs, wide), widenAll(outputs, wide), attributes);
    const written = [
      ...mutates.map((name) => inputs[name]),
      ...Object.values(outputs),
    ];
    for (const tensor of written) {
      const values = tensor && wide.get(tensor.allocation);
      if (values) narrow(values, tensor);
    }
  };
}

function isHalf(tensor: Tensor | undefined): boolean {
  return tensor?.dtype === 'f16' || tensor?.dtype === 'bf16';
}

/** Tensors that share an allocation share its f32 copy. */
function widenAll(
  operands: Operands,
  wide: Map<Allocation, Float32Array>,
): Operands {
  return Object.fromEntries(
    Object.entries(operands).map(([name, tensor]) => {
      if (!tensor || !isHalf(tensor)) return [name, tensor];
      const values = wide.get(tensor.allocation) ?? widen(tensor);
      wide.set(tensor.allocation, values);
      const storage = new Memory(values, 'f32');
      const allocation = { backend: tensor.backend, storage, freed: false };
      return [name, new Tensor(allocation as Allocation, tensor.shape, 'f32')];
    }),
  );
}

function widen(tensor: Tensor): Float32Array {
  const bits = elements(tensor) as Uint16Array;
  return tensor.dtype === 'f16' ? f16ToF32(bits) : bf16ToF32(bits);
}

function narrow(values: Float32Array, tensor: Tensor): void {
  const bits = elements(tensor) as Uint16Array;
  bits.set(tensor.dtype === 'f16' ? f32ToF16(values) : f32ToBf16(values));
}
