import { f32, i32, i64 } from '../launch';
import {
  extent,
  type KernelContext,
  type Kernels,
  type ManyKernels,
  PIECE,
  THREADS,
  typed,
} from './context';
import { launchesOf, padded } from './many';

/** Heads that share a thread's angles; as in the kernel. */
const HEADS = 4;
/** Tensors of a launch. */
const MOST = 4;
/** Tokens of a decoding step, whose pairs have a thread each. */
const FEW = 8;

type Call = Parameters<ManyKernels<'rope'>['rope']>[0][number];

const nothing = [undefined, undefined, undefined, undefined];
const none = [...nothing, i64(0), i32(0), i32(0), i64(0)];

export const ropeMany = (context: KernelContext): ManyKernels<'rope'> => ({
  rope(calls) {
    const cut = { each: THREADS, most: MOST };
    const launches = launchesOf(calls, areAlike, threadsOf, cut);
    for (const { first, parts, blocks } of launches) {
      const { style, inverse = false } = first.attributes;
      const tensors = parts.map(({ call, start }) => {
        const { x, positions, frequencies } = call.inputs;
        return [
          ...[x, positions, frequencies, call.outputs.y],
          i64(threadsOf(call)),
          ...[extent(x, 1), pairsOf(call)].map(i32),
          i64(start),
        ];
      });
      context.run({
        file: 'rope',
        entry: isWhole(first) ? 'ropePieces' : 'rope',
        defines: { ...typed(first.inputs.x), MOST },
        grid: [blocks],
        threads: [THREADS],
        arguments: [
          ...padded(tensors, none, MOST),
          i32(style === 'half' ? 1 : 2),
          f32(inverse ? -1 : 1),
          i32(parts.length),
        ],
      });
    }
  },
});

export const ropeKernels = (context: KernelContext): Kernels<'rope'> => ({
  rope(inputs, outputs, attributes) {
    ropeMany(context).rope([{ inputs, outputs, attributes }]);
  },
});

const pairsOf = ({ inputs }: Call) => extent(inputs.x, 2) / 2;

/** Whether threads have whole pieces: of few tokens they would be long at it. */
const isWhole = (call: Call) =>
  pairsOf(call) % PIECE === 0 && extent(call.inputs.x, 0) > FEW;

function threadsOf(call: Call): number {
  const { x } = call.inputs;
  if (!isWhole(call)) return x.size / 2;
  const groups = Math.ceil(extent(x, 1) / HEADS);
  return extent(x, 0) * groups * (pairsOf(call) / PIECE);
}

/** Whether all that a launch has once is the same. */
function areAlike(a: Call, b: Call): boolean {
  const { style, inverse = false } = a.attributes;
  return (
    a.inputs.x.dtype === b.inputs.x.dtype &&
    isWhole(a) === isWhole(b) &&
    style === b.attributes.style &&
    inverse === (b.attributes.inverse ?? false)
  );
}
