import { Tape } from '../autograd';
import type { Backend } from '../backend';
import type { FloatType } from '../dtype';
import { attend, attentionParameters } from '../layers/block';
import type { LayerContext } from '../layers/context';
import { weightsFrom } from '../layers/parameters';
import { Batch } from '../model/batch';
import type { AttentionConfig } from '../model/config';
import { NoPast } from '../model/past';
import { ropeFrequencies, rotations } from '../model/rope';
import { statisticType } from '../ops/operator';
import { Scope } from '../scope';
import type { Shape, Tensor } from '../tensor';
import { compareValues, relativeAllowance, worst } from '../verify/comparison';
import { download, rootMeanSquare, type Values } from '../verify/values';
import { type BenchCase, checkedOn, checkTokens, type Prepared } from './case';
import type { Cost } from './cost';
import { CountingBackend } from './counting-backend';
import { type Draw, doubleDraw, emptyDraw, normalDraw } from './fill';
import type { BenchProfile } from './profile';
import { gradientTolerance, modelTolerance } from './tolerance';

type Pass = 'forward' | 'backward';

/** An attention layer, projections included, over fresh sequences. */
export interface LayerBench {
  readonly name: string;
  readonly config: AttentionConfig;
  readonly profile: BenchProfile;
  readonly tokens: number;
}

/** The layers of Alternating Sparse Attention, and those it is compared with. */
export function layerBenches(
  profile: BenchProfile,
  tokens: number,
): LayerBench[] {
  const { heads, groups, width, ropeWidth, window, block, count } = profile;
  const latent = {
    heads,
    contentWidth: width,
    valueWidth: width,
    ropeWidth,
  };
  const plain = { heads, keyValueHeads: groups, headWidth: width };
  const compression = {
    kind: 'mean',
    length: block,
    stride: block,
    rope: 'rotated-mean',
  } as const;
  const selection = { blockSize: block, count, initial: 1, local: 2 };
  const layer = (name: string, config: AttentionConfig): LayerBench => ({
    name,
    config,
    profile,
    tokens,
  });
  return [
    ...profile.sharing.map((sharing) =>
      layer(`ASA global r=${sharing}`, {
        kind: 'gla',
        ...latent,
        groups,
        latentWidth: width,
        compression,
        selection: { ...selection, sharing },
        gateBias: true,
      }),
    ),
    layer('ASA local', {
      kind: 'mla',
      ...latent,
      latentWidth: groups * width,
      window,
    }),
    layer('NSA', {
      kind: 'nsa',
      ...plain,
      valueWidth: width,
      window,
      compression,
      selection: { ...selection, sharing: 1 },
      keyValues: 'shared',
      gateBias: false,
    }),
    layer('full', { kind: 'gqa', ...plain }),
  ];
}

export function layerCase(
  bench: LayerBench,
  pass: Pass,
  dtype: FloatType,
): BenchCase {
  const { name, profile, tokens } = bench;
  const { heads, width, hidden } = profile;
  const cost = costOfLayer(bench, pass, dtype, tokens);
  const narrow = narrowed(bench);
  const checked = checkTokens(
    tokens,
    (n) => costOfLayer(narrow, 'backward', dtype, n).flops,
    checks(profile),
  );
  return {
    suite: 'layers',
    name: `${name}, ${pass}`,
    dtype,
    shape: `T ${tokens}, hidden ${hidden}, H ${heads}, width ${width}`,
    context: tokens,
    tokens,
    check: {
      key: `layer ${name} ${dtype} ${checked}`,
      on:
        hidden > NARROW
          ? `${checked} tokens, hidden ${NARROW}`
          : checkedOn(checked, tokens, 'tokens'),
      judge: async (backend, reference) => {
        const got = await results(backend, narrow, dtype, normalDraw, checked);
        const double = doubleDraw(dtype);
        const want = await results(reference, narrow, 'f64', double, checked);
        return worst(compare(got, want, dtype));
      },
    },
    cost: async () => cost,
    prepare: async (backend) => prepareLayer(backend, bench, pass, dtype),
  };
}

/** Width of a layer's input in a check: attention itself is as wide as ever. */
const NARROW = 128;

const narrowed = ({ profile, ...bench }: LayerBench): LayerBench => ({
  ...bench,
  profile: { ...profile, hidden: Math.min(profile.hidden, NARROW) },
});

/** Every block is selected: no list hangs on the rounding of a score. */
const checks = ({ count, block }: BenchProfile) =>
  [37, 67, 131, 257, 521].filter((tokens) => tokens <= count * block);

/** A layer with weights and input on a backend. */
class LayerRun {
  readonly sources: readonly Tensor[];
  private readonly scope: Scope;
  private readonly batch: Batch;
  private readonly h: Tensor;
  private readonly weights = new Map<string, Tensor>();
  private readonly frequencies = new Map<number, Tensor>();

  constructor(
    private readonly backend: Backend,
    private readonly bench: LayerBench,
    private readonly dtype: FloatType,
    private readonly draw: Draw,
    tokens: number,
  ) {
    const { config, profile } = bench;
    this.scope = new Scope(backend);
    this.batch = new Batch(backend, [{ tokens: new Int32Array(tokens) }]);
    this.h = this.drawn([tokens, profile.hidden], 1);
    for (const spec of attentionParameters(config, profile.hidden)) {
      const { name, shape } = spec;
      const fanIn = shape.length > 1 ? (shape.at(-1) ?? 1) : 1;
      this.weights.set(name, this.drawn(shape, 1 / Math.sqrt(fanIn)));
    }
    this.sources = [this.h, ...this.weights.values()];
  }

  /** Names of `sources`. */
  get names(): readonly string[] {
    return ['h', ...this.weights.keys()];
  }

  forward(scope: Scope): Tensor {
    const weights = weightsFrom(this.weights);
    return attend(this.context(scope), this.h, weights, this.bench.config);
  }

  /** The forward pass; returns what runs the backward pass. */
  record(): () => Map<Tensor, Tensor> {
    const tape = new Tape();
    tape.watch(...this.sources);
    const scope = new Scope(this.backend, tape);
    const y = this.forward(scope);
    const seed = this.drawn(y.shape, 1);
    this.recorded.push(scope);
    return () => tape.backward(y, seed, this.sources);
  }
  private readonly recorded: Scope[] = [];

  free(): void {
    for (const scope of this.recorded) scope.free();
    this.scope.free();
    this.batch.free();
  }

  private drawn(shape: Shape, deviation: number): Tensor {
    const seed = 1 + this.weights.size;
    return this.draw(this.scope, shape, this.dtype, seed, deviation);
  }

  private context(scope: Scope): LayerContext {
    const { batch } = this;
    const positions = batch.indices('positions', () => batch.positions);
    return {
      scope,
      past: new NoPast(batch),
      positions,
      form: 'auto',
      normEps: 1e-6,
      ...rotations(scope, 'half', positions, (width) =>
        this.frequenciesOf(width),
      ),
    };
  }

  private frequenciesOf(width: number): Tensor {
    let tensor = this.frequencies.get(width);
    if (!tensor) {
      const values = ropeFrequencies({ theta: 10_000, style: 'half' }, width);
      const type = statisticType(this.dtype);
      const data = type === 'f64' ? values : Float32Array.from(values);
      tensor = this.scope.tensor(data, [width / 2], type);
      this.frequencies.set(width, tensor);
    }
    return tensor;
  }
}

function costOfLayer(
  bench: LayerBench,
  pass: Pass,
  dtype: FloatType,
  tokens: number,
): Cost {
  const counting = new CountingBackend();
  const run = new LayerRun(counting, bench, dtype, emptyDraw, tokens);
  if (pass === 'forward') {
    run.forward(new Scope(counting));
    return counting.takeCost();
  }
  const back = run.record();
  counting.takeCost();
  back();
  return counting.takeCost();
}

function prepareLayer(
  backend: Backend,
  bench: LayerBench,
  pass: Pass,
  dtype: FloatType,
): Prepared {
  const { tokens } = bench;
  const layer = new LayerRun(backend, bench, dtype, normalDraw, tokens);
  const free = () => layer.free();
  if (pass === 'forward') {
    const run = () => {
      const scope = new Scope(backend);
      try {
        layer.forward(scope);
      } finally {
        scope.free();
      }
    };
    return { run, free };
  }
  try {
    const back = layer.record();
    const run = () => {
      for (const gradient of back().values()) gradient.free();
    };
    return { run, free };
  } catch (error) {
    layer.free();
    throw error;
  }
}

interface Results {
  readonly y: Values;
  /** By parameter, and `h`. */
  readonly gradients: ReadonlyMap<string, Values>;
}

async function results(
  backend: Backend,
  bench: LayerBench,
  dtype: FloatType,
  draw: Draw,
  tokens: number,
): Promise<Results> {
  const run = new LayerRun(backend, bench, dtype, draw, tokens);
  const scope = new Scope(backend);
  try {
    const y = await download(run.forward(scope));
    const found = run.record()();
    const gradients = new Map<string, Values>();
    for (const [i, source] of run.sources.entries()) {
      const gradient = found.get(source);
      if (!gradient) continue;
      gradients.set(run.names[i] ?? '', await download(gradient));
      gradient.free();
    }
    return { y, gradients };
  } finally {
    scope.free();
    run.free();
  }
}

function* compare(got: Results, want: Results, dtype: FloatType) {
  const forward = relativeAllowance(want.y, modelTolerance(dtype, 1));
  yield compareValues('y', got.y, want.y, forward);
  const sizes = [...want.gradients.values()].map(({ data }) =>
    rootMeanSquare(data),
  );
  // A gradient that all but cancels has the errors of those that do not.
  const floor = 0.1 * Math.max(...sizes);
  for (const [name, wanted] of want.gradients) {
    const gradient = got.gradients.get(name);
    if (!gradient) continue;
    const relative = gradientTolerance(dtype, 1);
    const allowed = relativeAllowance(wanted, relative, floor);
    yield compareValues(`gradient of ${name}`, gradient, wanted, allowed);
  }
}
