import { openCpu } from '@asa/backend-cpu';
import type { Backend } from '@asa/core';
import { type Law, lawContext, laws } from '@asa/core/verify';
import { afterAll, beforeAll, expect, test } from 'vitest';

const cases = 200;

/** In which file a law is tried: three files, so that they run side by side. */
type LawGroup = 'operators' | 'models' | 'gradients';

function groupOf({ name }: Law): LawGroup {
  if (/gradients/.test(name)) return 'gradients';
  return /^[A-Z]+: /.test(name) ? 'models' : 'operators';
}

/** Tries the laws of a group on the CPU with poisoned memory. */
export function checkLaws(group: LawGroup): void {
  let backend: Backend;
  let reference: Backend;
  beforeAll(async () => {
    backend = await openCpu({ poison: true });
    reference = await openCpu({ poison: true });
  });
  afterAll(async () => {
    await backend.destroy();
    await reference.destroy();
  });

  const some = laws.filter((law) => groupOf(law) === group);
  test.each(some)('$name', { timeout: 60_000 }, async (law) => {
    const context = lawContext({ backend, reference });
    expect(context).toMatchObject({ dtype: 'f64', isRowwise: true });
    const before = backend.memory().bytesInUse;
    const outcome = await law.check(context, { seed: 3, cases });
    expect(outcome.detail ?? '').toBe('');
    expect(outcome).toMatchObject({ status: 'ok', cases, missing: 0 });
    expect(backend.memory().bytesInUse).toBe(before);
    expect(reference.memory().bytesInUse).toBe(0);
  });
}
