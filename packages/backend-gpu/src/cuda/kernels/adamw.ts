import { f32, i32, i64 } from '../launch';
import {
  type KernelContext,
  type Kernels,
  type ManyKernels,
  PIECE,
  typed,
} from './context';
import { launchesOf, type ManyLaunch, padded } from './many';

const THREADS = 256;
/** Elements of a block of threads, as in the kernel, and tensors of a launch. */
const ELEMENTS = 4 * PIECE * THREADS;
const MOST = 64;

type Call = Parameters<ManyKernels<'adamw'>['adamw']>[0][number];

const nothing = [undefined, undefined, undefined, undefined, undefined];
const none = [...nothing, i64(0), f32(0), i32(0)];

export const adamwMany = (context: KernelContext): ManyKernels<'adamw'> => ({
  adamw(calls) {
    const cut = { each: ELEMENTS, most: MOST };
    const sizeOf = ({ inputs }: Call) => inputs.parameter.size;
    for (const launch of launchesOf(calls, areAlike, sizeOf, cut)) {
      update(context, launch);
    }
  },
});

export const adamwKernels = (context: KernelContext): Kernels<'adamw'> => ({
  adamw(inputs, outputs, attributes) {
    adamwMany(context).adamw([{ inputs, outputs, attributes }]);
  },
});

/** Attributes that a launch has once. */
const common = [
  ...(['learningRate', 'beta1', 'beta2', 'eps'] as const),
  ...(['step', 'clip', 'lossScale'] as const),
];

/** Whether all that a launch has once is the same. */
function areAlike(a: Call, b: Call): boolean {
  return (
    a.inputs.parameter.dtype === b.inputs.parameter.dtype &&
    a.inputs.gradient.dtype === b.inputs.gradient.dtype &&
    a.inputs.rounded?.dtype === b.inputs.rounded?.dtype &&
    a.inputs.squaredNorm === b.inputs.squaredNorm &&
    common.every((name) => a.attributes[name] === b.attributes[name])
  );
}

function update(
  context: KernelContext,
  { first, parts, blocks }: ManyLaunch<Call>,
): void {
  const { inputs, attributes } = first;
  const { learningRate, beta1, beta2, eps, step, clip } = attributes;
  const { lossScale = 1 } = attributes;
  // Corrections in double on the host: 1 - b2^t loses digits in f32.
  const rates = [
    beta1,
    1 - beta1,
    beta2,
    1 - beta2,
    learningRate / (1 - beta1 ** step),
    1 / (1 - beta2 ** step),
    eps,
    clip ?? 0,
    1 / lossScale,
  ].map(f32);
  const tensors = parts.map(({ call, start }) => {
    const { parameter, gradient, m, v, rounded } = call.inputs;
    const keep = 1 - learningRate * call.attributes.weightDecay;
    return [
      ...[parameter, gradient, m, v, rounded],
      i64(parameter.size),
      f32(keep),
      i32(start),
    ];
  });
  context.run({
    file: 'adamw',
    entry: 'adamw',
    defines: {
      ...typed(inputs.parameter),
      G: inputs.gradient.dtype,
      R: (inputs.rounded ?? inputs.parameter).dtype,
      MOST,
    },
    grid: [blocks],
    threads: [THREADS],
    arguments: [
      ...padded(tensors, none, MOST),
      clip === undefined ? undefined : inputs.squaredNorm,
      ...rates,
      i32(parts.length),
    ],
  });
}
