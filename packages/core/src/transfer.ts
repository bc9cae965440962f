import type { Backend } from './backend';
import type { Tensor } from './tensor';

/**
 * Copies tensors of one backend to tensors of another, of the same shapes and
 * types: from device to device, without a wait, where `to` can receive from
 * there, else through the host. A pair is asked for once the one before it is
 * copied, or its copy is enqueued.
 */
export async function transfer(
  from: Backend,
  to: Backend,
  pairs: Iterable<readonly [source: Tensor, target: Tensor]>,
): Promise<void> {
  const isDone = to.receive?.(from, (copy) => {
    for (const [source, target] of pairs) copy(source.storage, target.storage);
  });
  if (isDone) return;
  for (const [source, target] of pairs) {
    to.write(target.storage, await from.read(source.storage));
  }
}
