import fc from 'fast-check';
import { Tape } from '../../autograd';
import type { HostArray } from '../../dtype';
import type { Model } from '../../model/model';
import { type OperatorName, operators } from '../../ops';
import { Random } from '../../random';
import { Scope } from '../../scope';
import type { Tensor } from '../../tensor';
import { type Example, losses } from '../../train/loss';
import {
  describeCase,
  differentiableCases,
  normal,
  type OperatorCase,
  operatorCases,
  valuesOfCase,
} from '../arbitraries';
import {
  describeModel,
  type ModelCase,
  modelCases,
  modelOf,
  patterns,
  tokensOf,
} from '../arbitraries/models';
import { type Comparison, compareBits, worst } from '../comparison';
import {
  compareGradients,
  compareWithReference,
  modelGradients,
  nextTokens,
} from '../models';
import {
  anyOperator,
  doubled,
  referenceOn,
  sequencesOf,
  uploadAll,
  type ValuesByName,
} from '../run-operator';
import { download, roundedTo, upload, type Values } from '../values';
import { withKernels } from '../wrap-backend';
import { type Law, type LawContext, law } from './law';

/** Largest relative error of a derivative. */
const tolerance = 1e-6;
/** Step along a direction of unit normal components. */
const step = 1e-5;

/**
 * The derivative of f at 0, from four values: the error is of fourth order in
 * the step, and rounding's, both far below the tolerance.
 */
async function derivative(f: (x: number) => Promise<number>): Promise<number> {
  const near = (await f(step)) - (await f(-step));
  const far = (await f(2 * step)) - (await f(-2 * step));
  return (8 * near - far) / (12 * step);
}

/** Compares `gradient . direction` with central differences along it. */
async function compareAlong(
  name: string,
  gradient: ArrayLike<number>,
  direction: Float64Array,
  size: number,
  f: (x: number) => Promise<number>,
): Promise<Comparison> {
  let analytic = 0;
  let square = 0;
  for (let i = 0; i < direction.length; i++) {
    analytic += (gradient[i] ?? 0) * (direction[i] ?? 0);
    square += (gradient[i] ?? 0) ** 2;
  }
  const numeric = await derivative(f);
  // A direction may lie across the gradient; differences of a function of
  // this size have errors of their own.
  const scale = Math.max(Math.abs(numeric), Math.sqrt(square), 1e-3 * size);
  const error = Math.abs(numeric - analytic);
  const percent = error === 0 ? 0 : (100 * error) / (tolerance * scale);
  if (percent <= 100) return { percent };
  return {
    percent,
    detail: `the derivative along a direction of ${name} is ${analytic}, must be ${numeric}`,
  };
}

const differentiable = (Object.keys(operators) as OperatorName[]).filter(
  (name) => anyOperator(name).gradient,
);

/** Inputs that an operator has no gradient for. */
const constants = new Set(['frequencies', 'state']);

const operatorGradients: readonly Law[] = differentiable.map((operator) =>
  law({
    name: `${operator}: gradients`,
    arbitrary: differentiableCases[operator] ?? operatorCases[operator],
    describe: describeCase,
    judge: judgeOperator,
  }),
);

/**
 * Central differences where the backend has f64. Elsewhere they would show
 * rounding only, so gradients are compared with those of the reference.
 */
async function judgeOperator(
  context: LawContext,
  call: OperatorCase,
): Promise<Comparison> {
  const { dtype, reference } = context;
  const oracle = referenceOn(reference);
  const { state: _, ...values } = await valuesOfCase(call, dtype, oracle);
  const inputs = awayFromPoles(call.operator, values);
  const random = Random.fromSeed(call.seed + 1);
  const weights = await outputWeights(context, call, inputs, random);
  const gradients = await gradientsOf(context, call, inputs, weights);
  if (dtype !== 'f64') {
    const exact = { ...context, backend: reference, dtype: 'f64' } as const;
    const doubles = doubled(inputs);
    const want = await gradientsOf(exact, call, doubles, weights);
    return compareGradients(
      context,
      byName(inputs, gradients),
      byName(doubles, want),
    );
  }
  const size = Math.sqrt(weights.length);
  const results: Comparison[] = [];
  for (const [value, gradient] of gradients) {
    const direction = Float64Array.from(normal(random, value.data.length));
    const names = Object.keys(inputs).filter((name) => inputs[name] === value);
    const at = (x: number) =>
      evaluate(context, call, moved(inputs, value, direction, x), weights);
    results.push(
      await compareAlong(
        names.join(' and '),
        gradient.data,
        direction,
        size,
        at,
      ),
    );
  }
  return worst(results);
}

function byName(
  inputs: ValuesByName,
  gradients: ReadonlyMap<Values, Values>,
): Map<string, Values> {
  const named = new Map<string, Values>();
  for (const [name, value] of Object.entries(inputs)) {
    const gradient = gradients.get(value);
    if (gradient) named.set(name, gradient);
  }
  return named;
}

/** A gradient may cancel: its error is that of the others' size then. */
/** A norm of values near 0 bends within a step. */
function awayFromPoles(
  operator: OperatorName,
  inputs: ValuesByName,
): ValuesByName {
  const { x } = inputs;
  if (operator !== 'rmsNorm' || !x) return inputs;
  const away = Float64Array.from(x.data, (v) => v + 0.5 * Math.sign(v));
  return { ...inputs, x: { ...x, data: away } };
}

/** Moves one tensor, under all its names, along a direction. */
function moved(
  inputs: ValuesByName,
  value: Values,
  direction: Float64Array,
  x: number,
): ValuesByName {
  const data = Float64Array.from(
    value.data,
    (v, i) => v + x * (direction[i] ?? 0),
  );
  const other = { ...value, data };
  return Object.fromEntries(
    Object.entries(inputs).map(([name, v]) => [name, v === value ? other : v]),
  );
}

/** The output that gradients flow from. */
const mainOutput = (outputs: Readonly<Record<string, Tensor | undefined>>) => {
  const output = outputs.y ?? outputs.o ?? outputs.loss;
  if (!output) throw new Error('internal: no main output');
  return output;
};

async function withCall<T>(
  { backend, dtype }: LawContext,
  { operator, attributes }: OperatorCase,
  inputs: ValuesByName,
  use: (
    output: Tensor,
    tensors: Readonly<Record<string, Tensor>>,
    tape: Tape,
    scope: Scope,
  ) => Promise<T>,
): Promise<T> {
  const tape = new Tape();
  const scope = new Scope(backend, tape);
  try {
    const tensors = uploadAll(scope, inputs);
    for (const [name, tensor] of Object.entries(tensors)) {
      if (tensor.dtype !== 'i32' && !constants.has(name)) tape.watch(tensor);
    }
    const given = operator === 'cast' ? { dtype } : attributes;
    const outputs = scope.run(anyOperator(operator), tensors, given);
    return await use(mainOutput(outputs), tensors, tape, scope);
  } finally {
    scope.free();
    sequencesOf(attributes)?.free();
  }
}

function outputWeights(
  context: LawContext,
  call: OperatorCase,
  inputs: ValuesByName,
  random: Random,
): Promise<Float64Array> {
  return withCall(context, call, inputs, async ({ size }) =>
    roundedTo(Float64Array.from(normal(random, size)), context.dtype),
  );
}

/** `sum of weights times output`. */
function evaluate(
  context: LawContext,
  call: OperatorCase,
  inputs: ValuesByName,
  weights: Float64Array,
): Promise<number> {
  return withCall(context, call, inputs, async (output) => {
    const { data } = await download(output);
    return weights.reduce((sum, w, i) => sum + w * (data[i] ?? 0), 0);
  });
}

function gradientsOf(
  context: LawContext,
  call: OperatorCase,
  inputs: ValuesByName,
  weights: Float64Array,
): Promise<Map<Values, Values>> {
  return withCall(
    context,
    call,
    inputs,
    async (output, tensors, tape, scope) => {
      const seed = upload(scope, {
        shape: output.shape,
        dtype: output.dtype,
        data: weights,
      });
      const sources = Object.entries(tensors).filter(
        ([name, { dtype }]) => dtype !== 'i32' && !constants.has(name),
      );
      const unique = [...new Set(sources.map(([, tensor]) => tensor))];
      const found = tape.backward(output, seed, unique);
      const result = new Map<Values, Values>();
      for (const [name, tensor] of sources) {
        const value = inputs[name];
        const gradient = found.get(tensor);
        if (!value || result.has(value)) continue;
        const zeros = { ...value, data: new Float64Array(value.data.length) };
        result.set(value, gradient ? await download(gradient) : zeros);
      }
      for (const gradient of found.values()) gradient.free();
      return result;
    },
  );
}

const layerGradients: readonly Law[] = patterns.map((pattern) =>
  law({
    name: `${pattern}: gradients`,
    arbitrary: fc.tuple(
      modelCases(pattern, 12),
      fc.double({ min: 0, max: 1, noNaN: true }),
    ),
    describe: ([modelCase, share], dtype) =>
      `${describeModel(modelCase, dtype)}, share ${share}`,
    judge: (context, [modelCase, share]) =>
      context.dtype === 'f64'
        ? compareDifferences(context, modelCase, share)
        : compareWithReference(context, modelCase),
  }),
);

async function compareDifferences(
  context: LawContext,
  modelCase: ModelCase,
  share: number,
): Promise<Comparison> {
  const lists = new FixedLists();
  const backend = lists.on(context.backend);
  const model = await modelOf(backend, modelCase, 'f64');
  try {
    const examples = nextTokens(tokensOf(modelCase));
    lists.record();
    const gradients = await modelGradients(model, examples);
    const names = [...model.parameters.keys()];
    const one = names[Math.floor(share * (names.length - 1))] ?? '';
    const random = Random.fromSeed(modelCase.seed + 3);
    const along = (chosen: readonly string[]) =>
      compareParameters(model, chosen, gradients, random, () => {
        lists.replay();
        return totalLoss(model, examples);
      });
    return worst([await along(names), await along([one])]);
  } finally {
    lists.free();
    model.free();
  }
}

const repeatedGradients: readonly Law[] = patterns.map((pattern) =>
  law({
    name: `${pattern}: the same gradients twice, to the bit`,
    arbitrary: modelCases(pattern, 16),
    describe: describeModel,
    judge: async ({ backend, dtype }, modelCase) => {
      const model = await modelOf(backend, modelCase, dtype);
      try {
        const examples = nextTokens(tokensOf(modelCase));
        const runs: ValuesByName[] = [];
        for (let i = 0; i < 2; i++) {
          const gradients = await modelGradients(model, examples);
          runs.push(Object.fromEntries(gradients));
        }
        const [first = {}, second = {}] = runs;
        return worst(
          Object.entries(first).flatMap(([name, values]) => {
            const again = second[name];
            return again ? [compareBits(name, again, values)] : [];
          }),
        );
      } finally {
        model.free();
      }
    },
  }),
);

/** Compares along one direction over some parameters together. */
async function compareParameters(
  model: Model,
  names: readonly string[],
  gradients: ReadonlyMap<string, Values>,
  random: Random,
  loss: () => Promise<number>,
): Promise<Comparison> {
  const flat: number[] = [];
  const tensors: [Tensor, HostArray, Float64Array][] = [];
  for (const name of names) {
    const tensor = model.parameters.get(name);
    if (!tensor) continue;
    const { backend, storage, size } = tensor;
    const direction = Float64Array.from(normal(random, size));
    const gradient = gradients.get(name)?.data ?? new Float64Array(size);
    for (const value of gradient) flat.push(value);
    tensors.push([tensor, await backend.read(storage), direction]);
  }
  const moveTo = (x: number) => {
    for (const [{ backend, storage }, values, direction] of tensors) {
      const data = Float64Array.from(
        values,
        (v, i) => v + x * (direction[i] ?? 0),
      );
      backend.write(storage, data);
    }
  };
  const all = Float64Array.from(tensors.flatMap(([, , d]) => [...d]));
  const name = names.length === 1 ? (names[0] ?? '') : 'all parameters';
  const result = await compareAlong(name, flat, all, 1, (x) => {
    moveTo(x);
    return loss();
  });
  moveTo(0);
  return result;
}

async function totalLoss(
  model: Model,
  examples: readonly Example[],
): Promise<number> {
  const each = await losses(model, examples);
  return each.reduce((sum, loss) => sum + loss, 0);
}

/** Block lists are constants to the gradient, so they stay as they were. */
class FixedLists {
  private readonly scopes: Scope[] = [];
  private lists: Tensor[] = [];
  private next = 0;
  private isRecording = false;

  on(backend: LawContext['backend']): LawContext['backend'] {
    return withKernels(backend, {
      selectBlocks: (own) => (inputs, outputs, attributes) => {
        const { indices } = outputs;
        if (!indices) return;
        if (this.isRecording) {
          own(inputs, outputs, attributes);
          this.keep(indices);
        } else {
          const list = this.lists[this.next++];
          if (list) copy(list, indices);
        }
      },
    });
  }

  record(): void {
    this.isRecording = true;
  }

  /** From the first call again. */
  replay(): void {
    this.isRecording = false;
    this.next = 0;
  }

  free(): void {
    for (const scope of this.scopes) scope.free();
    this.lists = [];
  }

  private keep(indices: Tensor): void {
    const scope = new Scope(indices.backend);
    const list = scope.empty(indices.shape, 'i32');
    copy(indices, list);
    this.scopes.push(scope);
    this.lists.push(list);
  }
}

function copy(from: Tensor, to: Tensor): void {
  from.backend.copy(from.storage, 0, to.storage, 0, from.size);
}

export const gradientLaws: readonly Law[] = [
  ...operatorGradients,
  ...layerGradients,
  ...repeatedGradients,
];
