import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import type { OperatorName, SampleAttributes } from '../ops';
import {
  describeCase,
  type OperatorCase,
  operatorCases,
  valuesOfCase,
} from './arbitraries';
import type { RunReference } from './arbitraries/case';
import { compareOutputs, wrong } from './comparison';
import { type FuzzOptions, fuzz, type Judgement, type Outcome } from './fuzz';
import {
  canRun,
  referenceOn,
  runOperator,
  type ValuesByName,
} from './run-operator';
import { compareTokens } from './sampling-rule';
import { compareLists } from './selection-rule';
import { relativeTolerance } from './tolerances';

/** The backend on trial, and one that computes in double. */
export interface Trial {
  readonly backend: Backend;
  readonly reference: Backend;
}

/**
 * Runs an operator on random calls and compares all it writes with the
 * reference, wholly in double on the same rounded inputs.
 */
export function differential(
  trial: Trial,
  operator: OperatorName,
  dtype: FloatType,
  options: FuzzOptions,
): Promise<Outcome> {
  return fuzz(
    operatorCases[operator],
    (call) => judgeCase(trial, call, dtype),
    (call) => describeCase(call, dtype),
    options,
  );
}

/** Draws one call and compares it. */
async function judgeCase(
  trial: Trial,
  call: OperatorCase,
  dtype: FloatType,
): Promise<Judgement> {
  const inputs = await valuesOfCase(call, dtype, referenceOn(trial.reference));
  return judgeCall(trial, call, inputs, dtype);
}

/** Compares one call on these inputs with the reference in double. */
export async function judgeCall(
  { backend, reference }: Trial,
  call: Pick<OperatorCase, 'operator' | 'attributes' | 'exactTies'>,
  inputs: ValuesByName,
  dtype: FloatType,
  oracle: RunReference = referenceOn(reference),
): Promise<Judgement> {
  const { operator, attributes } = call;
  const can = canRun(backend, operator, inputs, attributes);
  if (can !== true) return { missing: can };
  const got = await runOperator(backend, operator, inputs, attributes);
  if (operator === 'selectBlocks') {
    const { indices } = got;
    if (!indices) return wrong('indices are missing');
    return compareLists(call, inputs, indices, dtype, oracle);
  }
  if (operator === 'sample') {
    const spec = { shape: [], dtype: 'f32' } as const;
    const context = { inputs, attributes };
    const error = 4 * relativeTolerance(operator, dtype, spec, context);
    return compareTokens(attributes as SampleAttributes, inputs, got, error);
  }
  const want = await oracle(operator, inputs, attributes);
  const context = { inputs, attributes };
  return compareOutputs(operator, got, want, dtype, context);
}
