import { matmul } from '../ops/matmul';
import { rmsNorm } from '../ops/rms-norm';
import type { Scope } from '../scope';
import type { Blocking, Sequences } from '../sequences';
import type { Tensor } from '../tensor';
import { type Weights, weightsFrom } from './parameters';

/** Tensors of one row a token (or a block) each, by name. */
export type Rows = Readonly<Record<string, Tensor>>;

/** Rows that a call's queries may see, and where each sequence's lie. */
export interface Visible<R extends Rows> {
  readonly rows: R;
  /** Names how the rows lie: layers of one key share index tensors. */
  readonly key: string;
  /** Row of each sequence's first visible position. */
  readonly starts: readonly number[];
  /** Visible positions of each sequence, its queries included, at present. */
  readonly counts: () => readonly number[];
  /** Nothing lies between: worth working on every row, e.g. expanding it. */
  readonly compact: boolean;
  /** The row of a visible position of a sequence. */
  rowOf(sequence: number, position: number): number;
}

/** Block rows, and where each sequence's block 0 lies. */
export interface Blocks<R extends Rows> {
  readonly rows: R;
  readonly starts: readonly number[];
}

/** Makes block rows out of token rows. */
export type Compressor<From extends Rows, To extends Rows> = (
  rows: From,
  sequences: Sequences,
  /** Position of each token row, i32 `[Nk]`. */
  positions: Tensor,
  /** Position of each block's first token, i32 `[NB]`. */
  blockPositions: Tensor,
) => To;

/**
 * What one layer knows of the tokens before this call. Training knows nothing;
 * a session keeps a cache. Layers are written once for both.
 */
export interface LayerPast {
  /** Takes the rows of the new tokens in; gives all that are visible. */
  extend<R extends Rows>(part: string, rows: R, window?: number): Visible<R>;
  /** Compresses the blocks that became whole; gives all block rows. */
  compress<From extends Rows, To extends Rows>(
    part: string,
    visible: Visible<From>,
    blocking: Blocking,
    compressor: Compressor<From, To>,
  ): Blocks<To>;
  /** Lays the queries over visible rows and, if given, block rows. */
  sequences(
    visible: Visible<Rows>,
    blocks?: Blocks<Rows>,
    sharing?: number,
  ): Sequences;
  /**
   * Block lists of each sequence's last leader, i32 `[S, G, n]`, until others are
   * remembered.
   */
  previousLeaders(): Tensor | undefined;
  rememberLeaders(indices: Tensor, sequences: Sequences, sharing: number): void;
  /** Recurrent state before the first query, `[S, ...]`, until it is remembered. */
  state(): Tensor | undefined;
  rememberState(state: Tensor): void;
}

/** What a layer's equations are evaluated with. */
export interface LayerContext {
  readonly scope: Scope;
  readonly past: LayerPast;
  /** Position of each token in its own sequence, i32 `[N]`. */
  readonly positions: Tensor;
  /** Turns `x [N, H, D]` by its positions, or back. */
  rotate(x: Tensor, positions?: Tensor, inverse?: boolean): Tensor;
  /** Turns several by the tokens' positions, where the backend can at once. */
  rotateMany<List extends readonly Tensor[]>(list: readonly [...List]): List;
  readonly normEps: number;
  /** Latent layers: the form that is cheaper here, or one of the two. */
  readonly form: 'auto' | 'expanded' | 'absorbed';
}

/** `W x`, or `W x + plus`, `[N, out]` with `W [out, in]`. */
export function linear(
  { scope }: Pick<LayerContext, 'scope'>,
  x: Tensor,
  weight: Tensor,
  plus?: Tensor,
): Tensor {
  return scope.run(matmul, { a: x, b: weight, plus }, { transposeB: true }).y;
}

/**
 * `W x` with each of these weights, by their names: for decoding a backend may put
 * such products into one launch.
 */
export function linears(
  { scope }: Pick<LayerContext, 'scope'>,
  x: Tensor,
  weights: Weights,
  names: readonly string[],
): Weights {
  const calls = names.map((name) => ({
    inputs: { a: x, b: weights(name) },
    attributes: { transposeB: true },
  }));
  const products = scope
    .runMany(matmul, calls)
    .map(({ y }, i) => [names[i] ?? '', y] as const);
  return weightsFrom(new Map(products));
}

/** RMSNorm over the last axis of x. */
export function norm(
  { scope, normEps }: LayerContext,
  x: Tensor,
  weight: Tensor,
): Tensor {
  return scope.run(rmsNorm, { x, weight }, { eps: normEps }).y;
}

/** `[N, H D]` as heads of `width`, `[N, H, D]`. */
export function splitHeads(x: Tensor, width: number): Tensor {
  const [rows = 0, columns = 0] = x.shape;
  return x.reshape([rows, columns / width, width]);
}

/** `[N, H, D]` as the `[N, H D]` that an output projection reads. */
export function joinHeads(x: Tensor): Tensor {
  const [rows = 0, heads = 0, width = 0] = x.shape;
  return x.reshape([rows, heads * width]);
}
