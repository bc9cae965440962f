import { openCpu } from '@asa/backend-cpu';
import { type OperatorName, operators, Scope } from '@asa/core';
import { operatorCases, withKernels } from '@asa/core/verify';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  bindingsOf,
  createKernels,
} from '../../../packages/backend-gpu/src/webgpu/kernels';
import {
  type Launch,
  present,
} from '../../../packages/backend-gpu/src/webgpu/launch';
import { valuesOfCase } from '../../../packages/core/src/verify/arbitraries';
import {
  referenceOn,
  runOperator,
} from '../../../packages/core/src/verify/run-operator';

/** Storage buffers of the widest of many launches, on no device at all. */
async function mostBindings(operator: OperatorName): Promise<number> {
  const backend = await openCpu();
  const oracle = referenceOn(backend);
  let most = 0;
  const kernels = createKernels({
    matrixUnit: undefined,
    attentionUnit: undefined,
    smallTiles: false,
    run: ({ bindings }: Launch) => {
      most = Math.max(most, present(bindings).length);
    },
    clear: () => {},
    scratch: (count, dtype) => new Scope(backend).empty([count], dtype),
  });
  const kernel = kernels[operator] as () => void;
  const recording = withKernels(backend, { [operator]: () => kernel });
  for (const call of fc.sample(operatorCases[operator], {
    numRuns: 60,
    seed: 1,
  })) {
    const inputs = await valuesOfCase(call, 'f32', oracle);
    await runOperator(recording, operator, inputs, call.attributes);
  }
  await backend.destroy();
  return most;
}

test.each(Object.keys(operators) as OperatorName[])(
  '%s binds no more buffers than it says',
  async (operator) => {
    const most = await mostBindings(operator);
    expect(most).toBeGreaterThan(1);
    expect(most).toBeLessThanOrEqual(bindingsOf(operator));
  },
);
