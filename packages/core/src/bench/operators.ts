import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { AsaError } from '../errors';
import type { OperatorName } from '../ops';
import { Scope } from '../scope';
import { Sequences } from '../sequences';
import type { Shape, Tensor } from '../tensor';
import { judgeCall } from '../verify/differential';
import {
  anyOperator,
  referenceOn,
  type ValuesByName,
} from '../verify/run-operator';
import { type Values, valuesOf } from '../verify/values';
import { type BenchCase, checkedOn, checkTokens, type Prepared } from './case';
import type { Cost } from './cost';
import { CountingBackend } from './counting-backend';
import { type Draw, emptyDraw, normalDraw, normalValues } from './fill';
import type { BenchProfile } from './profile';

/** An operator, and where each of its inputs comes from. */
export interface Step {
  readonly operator: OperatorName;
  readonly attributes: { readonly sequences?: Sequences };
  readonly inputs: Readonly<Record<string, Source>>;
}

/** A shape to fill at random, or an output of another operator. */
type Source = Shape | { readonly step: Step; readonly output: string };

const isShape = (source: Source): source is Shape => Array.isArray(source);

/** A step that is made for a number of tokens. */
export interface OperatorBench {
  readonly name: string;
  readonly shape: string;
  readonly tokens: number;
  step(tokens: number): Step;
}

export function operatorCase(
  { name, shape, tokens, step }: OperatorBench,
  dtype: FloatType,
): BenchCase {
  const costOf = (count: number) => costOfStep(step(count), dtype);
  const checked = checkTokens(tokens, (n) => costOf(n).flops, primes);
  return {
    suite: 'operators',
    name,
    dtype,
    shape: `T ${tokens}, ${shape}`,
    context: tokens,
    check: {
      key: `${name} ${shape} ${dtype} ${checked}`,
      on: checkedOn(checked, tokens, 'tokens'),
      judge: async (backend, reference) => {
        const call = step(checked);
        const inputs = await valuesOfStep(call, dtype, reference);
        return judgeCall({ backend, reference }, call, inputs, dtype);
      },
    },
    cost: async () => costOf(tokens),
    prepare: async (backend) =>
      prepareStep(backend, step(tokens), dtype, costOf(tokens)),
  };
}

/** Every attention at a number of tokens, forward and backward. */
export function attentionBenches(
  profile: BenchProfile,
  tokens: number,
): OperatorBench[] {
  const { heads, groups, width, ropeWidth, block, count, window } = profile;
  const shape = `H ${heads}, G ${groups}, ${width} + ${ropeWidth}`;
  const bench = (
    name: string,
    step: (steps: AttentionSteps) => Step,
    extra = '',
  ): OperatorBench => ({
    name,
    shape: shape + extra,
    tokens,
    step: (n) => step(new AttentionSteps(profile, n)),
  });
  const blocks = `, blocks of ${block}`;
  return [
    bench('attention', (s) => s.attention()),
    bench('attentionBackward', (s) => backward(s.attention())),
    bench(`attention window ${window}`, (s) => s.attention(window)),
    bench(`attentionBackward window ${window}`, (s) =>
      backward(s.attention(window)),
    ),
    bench('compressedAttention', (s) => s.compressed(1), blocks),
    bench(
      'compressedAttentionBackward',
      (s) => backward(s.compressed(1)),
      blocks,
    ),
    ...profile.sharing.flatMap((sharing) => {
      const lists = `${blocks}, ${count} selected`;
      return [
        bench(`selectBlocks r=${sharing}`, (s) => s.select(sharing), lists),
        bench(
          `selectedAttention r=${sharing}`,
          (s) => s.selected(sharing),
          lists,
        ),
        bench(
          `selectedAttentionBackward r=${sharing}`,
          (s) => backward(s.selected(sharing)),
          lists,
        ),
      ];
    }),
  ];
}

/** Tokens of a check: primes, and past the tiles of most kernels. */
const primes = [67, 131, 257, 521, 1031, 2053];

/** Calls in the absorbed form: the latent row is key and value. */
class AttentionSteps {
  private readonly q: Shape;
  private readonly qRope: Shape;
  private readonly c: Shape;
  private readonly kRope: Shape;
  private readonly scale: number;

  constructor(
    private readonly profile: BenchProfile,
    private readonly tokens: number,
  ) {
    const { heads, groups, width, ropeWidth } = profile;
    this.q = [tokens, heads, width];
    this.qRope = [tokens, heads, ropeWidth];
    this.c = [tokens, groups, width];
    this.kRope = [tokens, 1, ropeWidth];
    this.scale = 1 / Math.sqrt(width + ropeWidth);
  }

  attention(window?: number): Step {
    const { q, c, qRope, kRope, scale } = this;
    return {
      operator: 'attention',
      inputs: { q, k: c, v: c, qRope, kRope },
      attributes: {
        sequences: this.sequences(1),
        scale,
        ...(window !== undefined && { window }),
      } as Step['attributes'],
    };
  }

  compressed(sharing: number): Step {
    const { q, qRope } = this;
    const blocks = this.blocking(sharing);
    const cut = (x: Shape): Source => ({
      step: { operator: 'compress', inputs: { x }, attributes: blocks },
      output: 'y',
    });
    const c = cut(this.c);
    return {
      operator: 'compressedAttention',
      inputs: { q, k: c, v: c, qRope, kRope: cut(this.kRope) },
      attributes: blocks,
    };
  }

  select(sharing: number): Step {
    const step = this.compressed(sharing);
    const { v: _, ...ranking } = step.inputs;
    const { groups, count } = this.profile;
    return {
      operator: 'selectBlocks',
      inputs: { ...ranking, lse: { step, output: 'lse' } },
      attributes: {
        ...step.attributes,
        groups,
        count,
        initial: 1,
        local: 2,
      } as Step['attributes'],
    };
  }

  selected(sharing: number): Step {
    const { q, c, qRope, kRope } = this;
    const step = this.select(sharing);
    return {
      operator: 'selectedAttention',
      inputs: {
        q,
        k: c,
        v: c,
        qRope,
        kRope,
        indices: { step, output: 'indices' },
      },
      attributes: step.attributes,
    };
  }

  private blocking(sharing: number): Step['attributes'] {
    const { block } = this.profile;
    return {
      sequences: this.sequences(sharing),
      scale: this.scale,
      length: block,
      stride: block,
      blockSize: block,
      sharing,
    } as Step['attributes'];
  }

  private sequences(sharing: number): Sequences {
    const { block } = this.profile;
    const blocking = { length: block, stride: block, sharing };
    return Sequences.uniform(1, this.tokens, this.tokens, blocking);
  }
}

/** The backward pass; `Dv` is the width of q, and dO is drawn. */
function backward(step: Step): Step {
  const { q } = step.inputs;
  if (!q || !isShape(q)) throw new AsaError('internal: q is not drawn');
  return {
    operator: `${step.operator}Backward` as OperatorName,
    attributes: step.attributes,
    inputs: {
      ...step.inputs,
      o: { step, output: 'o' },
      lse: { step, output: 'lse' },
      dO: [...q],
    },
  };
}

/** The inputs of a step on the host, what other operators give made in double. */
async function valuesOfStep(
  step: Step,
  dtype: FloatType,
  reference: Backend,
): Promise<ValuesByName> {
  const oracle = referenceOn(reference);
  const made = new Map<Source | Step, unknown>();
  const results = async (of: Step): Promise<ValuesByName> => {
    const known = made.get(of) as ValuesByName | undefined;
    if (known) return known;
    const inputs = await inputsOf(of);
    const outputs = await oracle(of.operator, inputs, of.attributes);
    made.set(of, outputs);
    return outputs;
  };
  const sourceValues = async (source: Source): Promise<Values> => {
    const known = made.get(source) as Values | undefined;
    if (known) return known;
    const value = isShape(source)
      ? normalValues(source, dtype, made.size + 1)
      : rounded((await results(source.step))[source.output], source, dtype);
    made.set(source, value);
    return value;
  };
  const inputsOf = async (of: Step): Promise<ValuesByName> => {
    const inputs: Record<string, Values> = {};
    for (const [name, source] of Object.entries(of.inputs)) {
      inputs[name] = await sourceValues(source);
    }
    return inputs;
  };
  return inputsOf(step);
}

/** A result in double as the operand that the next operator takes. */
function rounded(
  value: Values | undefined,
  { output }: { readonly output: string },
  dtype: FloatType,
): Values {
  if (!value) throw new AsaError(`internal: no output ${output}`);
  if (value.dtype === 'i32') return value;
  const role = output === 'lse' ? 'statistic' : 'data';
  return valuesOf(value.shape, Float64Array.from(value.data), dtype, role);
}

/** Operands of a step on a backend. */
class Operands {
  private readonly tensors = new Map<Source, Tensor>();
  private readonly results = new Map<Step, Record<string, Tensor>>();

  constructor(
    private readonly scope: Scope,
    private readonly dtype: FloatType,
    private readonly draw: Draw,
    private readonly seed: number,
  ) {}

  of(step: Step): Record<string, Tensor> {
    return Object.fromEntries(
      Object.entries(step.inputs).map(([name, source]) => [
        name,
        this.tensor(source),
      ]),
    );
  }

  private tensor(source: Source): Tensor {
    const known = this.tensors.get(source);
    if (known) return known;
    const seed = this.seed + this.tensors.size;
    const tensor = isShape(source)
      ? this.draw(this.scope, source, this.dtype, seed)
      : this.run(source.step)[source.output];
    if (!tensor) throw new AsaError('internal: an operand was not made');
    this.tensors.set(source, tensor);
    return tensor;
  }

  private run(step: Step): Record<string, Tensor> {
    const known = this.results.get(step);
    if (known) return known;
    const operator = anyOperator(step.operator);
    const made = this.scope.run(operator, this.of(step), step.attributes);
    this.results.set(step, made as Record<string, Tensor>);
    return made as Record<string, Tensor>;
  }
}

/** What a step costs; those before it not counted. */
export function costOfStep(step: Step, dtype: FloatType): Cost {
  const counting = new CountingBackend();
  const scope = new Scope(counting);
  const operands = new Operands(scope, dtype, emptyDraw, 0).of(step);
  counting.takeCost();
  scope.run(anyOperator(step.operator), operands, step.attributes);
  free(step);
  return counting.takeCost();
}

/** Bytes that no cache of a device holds. */
const PAST_CACHES = 2 ** 27;
const MOST_COPIES = 64;
/** FLOPs a byte below which reading decides. */
const LOW_INTENSITY = 64;

/**
 * The step on operands of its own. Where reading them decides, there are
 * several copies in turn, so that no call finds its operands in a cache.
 */
export function prepareStep(
  backend: Backend,
  step: Step,
  dtype: FloatType,
  { flops, bytes }: Cost,
): Prepared {
  const scope = new Scope(backend);
  const copies =
    flops / bytes < LOW_INTENSITY
      ? Math.min(MOST_COPIES, Math.ceil(PAST_CACHES / bytes))
      : 1;
  try {
    const operands = Array.from({ length: copies }, (_, i) =>
      new Operands(scope, dtype, normalDraw, 100 * i).of(step),
    );
    const operator = anyOperator(step.operator);
    let turn = 0;
    return {
      run: () => {
        const inner = new Scope(backend);
        const inputs = operands[turn++ % copies] ?? {};
        inner.run(operator, inputs, step.attributes);
        inner.free();
      },
      free: () => {
        scope.free();
        free(step);
      },
    };
  } catch (error) {
    scope.free();
    free(step);
    throw error;
  }
}

/** Frees the sequences of a step and of those before it. */
function free({ attributes, inputs }: Step): void {
  attributes.sequences?.free();
  for (const source of Object.values(inputs)) {
    if (!isShape(source)) free(source.step);
  }
}
