import type { Backend } from '../backend';
import type { KernelTable, OperatorName } from '../ops';
import type { Tensor } from '../tensor';

/** A kernel of any operator. */
export type AnyKernel = (
  inputs: Readonly<Record<string, Tensor | undefined>>,
  outputs: Readonly<Record<string, Tensor>>,
  attributes: unknown,
) => void;

/** The same backend with some kernels put in the place of its own. */
export function withKernels(
  backend: Backend,
  replace: Readonly<
    Partial<Record<OperatorName, (own: AnyKernel) => AnyKernel>>
  >,
): Backend {
  const kernels: Partial<Record<OperatorName, AnyKernel>> = {
    ...(backend.kernels as Partial<Record<OperatorName, AnyKernel>>),
  };
  for (const [name, make] of Object.entries(replace)) {
    const own = kernels[name as OperatorName];
    if (own && make) kernels[name as OperatorName] = make(own);
  }
  return {
    name: backend.name,
    description: backend.description,
    kernels: kernels as unknown as KernelTable,
    supports: (...call) => backend.supports(...call),
    allocate: (...call) => backend.allocate(...call),
    write: (...call) => backend.write(...call),
    read: (storage) => backend.read(storage),
    copy: (...call) => backend.copy(...call),
    free: (storage) => backend.free(storage),
    flush: () => backend.flush(),
    synchronize: () => backend.synchronize(),
    memory: () => backend.memory(),
    destroy: () => backend.destroy(),
  };
}
