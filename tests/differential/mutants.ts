import type { OperatorName, Tensor } from '@asa/core';
import { operators, Scope } from '@asa/core';
import type { AnyKernel } from '@asa/core/verify';
import { memoryOf } from '../../packages/backend-cpu/src/memory';

type Mutation = (own: AnyKernel) => AnyKernel;
type Numbers = Readonly<Record<string, number>>;

/** The elements of a tensor of the CPU backend, to break them. */
const elements = (tensor: Tensor) => memoryOf(tensor.storage).data;

/** Runs the kernel with other attributes. */
const withAttributes =
  (change: (attributes: Numbers) => object): Mutation =>
  (own) =>
  (inputs, outputs, attributes) =>
    own(inputs, outputs, {
      ...(attributes as object),
      ...change(attributes as Numbers),
    });

/** Runs the kernel as if an optional input were not there. */
const without =
  (name: string): Mutation =>
  (own) =>
  (inputs, outputs, attributes) =>
    own({ ...inputs, [name]: undefined }, outputs, attributes);

/** Breaks what the kernel wrote. */
const afterwards =
  (
    spoil: (tensor: Tensor) => void,
    choose: (name: string) => boolean = () => true,
  ): Mutation =>
  (own) =>
  (inputs, outputs, attributes) => {
    own(inputs, outputs, attributes);
    for (const [name, tensor] of Object.entries(outputs)) {
      if (choose(name)) spoil(tensor);
    }
  };

/** The last row keeps what the memory held before. */
const droppedTail = afterwards((tensor) => {
  const data = elements(tensor);
  data.fill(0, data.length - (tensor.shape.at(-1) ?? 1));
});

/** Nothing is written: results are those of whoever had the memory before. */
const stale: Mutation = () => () => {};

const scaled = (factor: number, choose?: (name: string) => boolean) =>
  afterwards((tensor) => {
    const data = elements(tensor);
    for (let i = 0; i < data.length; i++) data[i] = (data[i] ?? 0) * factor;
  }, choose);

/** Runs the kernel as if one of its settings were 0. */
const zeroSetting =
  (column: number): Mutation =>
  (own) =>
  (inputs, outputs, attributes) => {
    if (inputs.settings) {
      const data = elements(inputs.settings);
      for (let i = column; i < data.length; i += 5) data[i] = 0;
    }
    own(inputs, outputs, attributes);
  };

const wrongScale = withAttributes(({ scale = 1 }) => ({ scale: scale * 1.01 }));
const widerWindow = withAttributes(({ window }) => ({
  window: window === undefined ? undefined : window + 1,
}));
const lateBlocks = withAttributes(({ length = 1 }) => ({ length: length + 1 }));
const otherLists = withAttributes(({ sharing = 1 }) => ({
  sharing: sharing + 1,
}));

/** (importance descending, index *descending*), the forced blocks right. */
const reversedTies: Mutation = (own) => (inputs, outputs, attributes) => {
  own(inputs, outputs, attributes);
  const { indices } = outputs;
  const { previous: _, ...ranking } = inputs;
  if (!indices) return;
  const scope = new Scope(indices.backend);
  const { importance } = scope.run(
    operators.blockImportance,
    ranking as never,
    attributes as never,
  );
  const scores = elements(importance);
  const lists = elements(indices);
  const blocks = importance.shape[2] ?? 0;
  const count = indices.shape[2] ?? 0;
  const { initial = 0, local = 0 } = attributes as Numbers;
  for (let row = 0; row * count < lists.length; row++) {
    const list = [...lists.slice(row * count, (row + 1) * count)];
    const own = Math.max(...list);
    if (own < 0) continue;
    const isForced = (b: number) => b < initial || b > own - local;
    const score = (b: number) => scores[row * blocks + b] ?? 0;
    const free = Array.from({ length: own + 1 }, (_, b) => b)
      .filter((b) => !isForced(b))
      .sort((a, b) => score(b) - score(a) || b - a);
    const kept = list.filter((b) => b >= 0);
    const forced = kept.filter(isForced);
    const chosen = [...forced, ...free.slice(0, kept.length - forced.length)];
    chosen
      .sort((a, b) => a - b)
      .forEach((b, i) => {
        lists[row * count + i] = b;
      });
  }
  scope.free();
};

/** NSA's formula read literally: one selection block too early. */
const shiftedImportance = afterwards((tensor) => {
  const data = elements(tensor);
  const blocks = tensor.shape[2] ?? 0;
  for (let i = 0; i < data.length; i++) {
    data[i] = (i + 1) % blocks === 0 ? 0 : (data[i + 1] ?? 0);
  }
});

/** The sum starts at 0 instead of what was there. */
const forgottenTotal: Mutation = (own) => (inputs, outputs, attributes) => {
  if (inputs.total) elements(inputs.total).fill(0);
  own(inputs, outputs, attributes);
};

/** Towards zero instead of to nearest even: one bit, now and then. */
const truncated = afterwards((tensor) => {
  const data = elements(tensor);
  if (data.length > 0) data[0] = (data[0] ?? 0) * (1 - 2 ** -22);
});

/** Rows of the operand's own size instead of norm 1. */
const unnormalised: Mutation = (own) => (inputs, outputs, attributes) => {
  own(inputs, outputs, attributes);
  if (inputs.x && outputs.y) elements(outputs.y).set(elements(inputs.x));
};

/** Ways to break each operator, as kernels really break. */
export const mutants: Readonly<
  Record<OperatorName, Readonly<Record<string, Mutation>>>
> = {
  matmul: {
    'dropped tail': droppedTail,
    'wrong scale': scaled(1.0001),
    'product alone': without('plus'),
  },
  headMatmul: { 'dropped tail': droppedTail, stale },
  headMatmulBackwardInput: { 'dropped tail': droppedTail },
  headMatmulBackwardWeight: { 'dropped tail': droppedTail, stale },
  gatherRows: { 'dropped tail': droppedTail, stale },
  gatherRowsBackward: { 'dropped tail': droppedTail },
  scatterRows: { stale },
  add: {
    'one operand twice': (own) => (inputs, outputs, attributes) =>
      own({ ...inputs, b: inputs.a }, outputs, attributes),
  },
  cast: { 'a bit lost': truncated, stale },
  rmsNorm: {
    'un-normalised rows': unnormalised,
    'eps in the wrong place': withAttributes(({ eps = 0 }) => ({
      eps: eps + 0.01,
    })),
  },
  rmsNormBackward: {
    'eps in the wrong place': withAttributes(({ eps = 0 }) => ({
      eps: eps + 0.01,
    })),
    'weight gradient of one row only': scaled(0.5, (n) => n === 'dWeight'),
    'not added': without('plus'),
  },
  rope: {
    'turned back': withAttributes(({ inverse }) => ({ inverse: !inverse })),
    'the other pairs': withAttributes(({ style }) => ({
      style: String(style) === 'half' ? 'interleaved' : 'half',
    })),
  },
  swiglu: { 'without up': without('up'), stale },
  swigluBackward: { 'dropped tail': droppedTail },
  crossEntropy: { 'base 2': scaled(Math.LOG2E) },
  crossEntropyBackward: { 'dropped tail': droppedTail },
  attention: {
    'window off by one': widerWindow,
    'wrong scale': wrongScale,
    'no rotary channels': (own) => (inputs, outputs, attributes) =>
      own(
        { ...inputs, qRope: undefined, kRope: undefined },
        outputs,
        attributes,
      ),
    'base-2 LSE': scaled(Math.LOG2E, (name) => name === 'lse'),
    stale,
  },
  attentionBackward: {
    'window off by one': widerWindow,
    'wrong scale': wrongScale,
    'dropped tail': droppedTail,
    'not added': without('plus'),
  },
  compress: {
    'sum, not mean': scaled(2),
    'logits unused': without('logits'),
    'dropped tail': droppedTail,
  },
  compressBackward: { 'logits unused': without('logits') },
  unfoldBlocks: { 'bias unused': without('bias'), 'dropped tail': droppedTail },
  unfoldBlocksBackward: { 'dropped tail': droppedTail },
  compressedAttention: {
    'a block seen too late': lateBlocks,
    'wrong scale': wrongScale,
  },
  compressedAttentionBackward: {
    'a block seen too late': lateBlocks,
    'wrong scale': wrongScale,
    'not added': without('plus'),
  },
  blockImportance: {
    'one block too early': shiftedImportance,
    'wrong scale': wrongScale,
  },
  selectBlocks: {
    'tie rule reversed': reversedTies,
    'earlier lists unused': without('previous'),
    'one forced block less': withAttributes(({ initial = 0 }) => ({
      initial: Math.max(0, initial - 1),
    })),
    'dropped tail block': afterwards((tensor) => {
      const lists = elements(tensor);
      lists.fill(-1, Math.max(0, lists.length - 1));
    }),
  },
  selectedAttention: {
    'wrong scale': wrongScale,
    'lists of other leaders': otherLists,
  },
  selectedAttentionBackward: {
    'wrong scale': wrongScale,
    'dropped tail': droppedTail,
    'not added': without('plus'),
  },
  gatedSum: { 'bias unused': without('bias') },
  gatedSumBackward: {
    'bias unused': without('bias'),
    'half a bias gradient': scaled(0.5, (name) => name === 'dBias'),
  },
  linearAttention: {
    'state unused': without('state'),
    'temperature unused': withAttributes(() => ({ temperature: 2 })),
  },
  linearAttentionBackward: {
    'temperature unused': withAttributes(() => ({ temperature: 2 })),
    'dropped tail': droppedTail,
  },
  squaredNorm: { 'not accumulated': forgottenTotal },
  sample: {
    'always the best': zeroSetting(0),
    'random number unused': zeroSetting(4),
    stale,
  },
  adamw: {
    'step off by one': withAttributes(({ step = 1 }) => ({ step: step + 1 })),
    'no decay': withAttributes(() => ({ weightDecay: 0 })),
    'clip unused': withAttributes(() => ({ clip: undefined })),
    'loss scale unused': withAttributes(() => ({ lossScale: undefined })),
    'copy as it was': without('rounded'),
    stale,
  },
};
