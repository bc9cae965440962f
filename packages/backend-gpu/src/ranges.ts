import { ArgumentError, type DType, DTypeError } from '@asa/core';

/** What every driver's memory says of itself. */
interface Elements {
  readonly elements: number;
  readonly dtype: DType;
}

/** @throws ArgumentError unless the elements lie in the tensor. */
export function checkRange(
  operation: string,
  { elements }: Elements,
  offset: number,
  length: number,
): void {
  if (!(offset >= 0 && length >= 0 && offset + length <= elements)) {
    throw new ArgumentError(
      `${operation}: elements ${offset} to ${offset + length} must lie in the ${elements} of the tensor`,
    );
  }
}

/**
 * The rules of `Backend.copy`.
 * @throws DTypeError where the types differ; ArgumentError outside of a tensor.
 */
export function checkCopy(
  from: Elements,
  sourceOffset: number,
  to: Elements,
  targetOffset: number,
  length: number,
): void {
  if (from.dtype !== to.dtype) {
    throw new DTypeError(
      `copy: the types must agree, got ${from.dtype} and ${to.dtype}`,
    );
  }
  checkRange('copy', from, sourceOffset, length);
  checkRange('copy', to, targetOffset, length);
}
