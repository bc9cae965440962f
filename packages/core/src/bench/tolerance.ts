import type { FloatType } from '../dtype';
import { roundoff } from '../verify/values';

/** Operators on the way through one layer. */
const OPERATORS = 10;
/** Roundings of f32 sums in one operator. */
const GROWTH = 64;
/** How much softmax and norms magnify what was rounded before them. */
const MAGNIFIED = 4;

/**
 * The error that a model of so many layers may have, relative to the size of
 * its result: the squares of the operators' errors add up. Sums are made in
 * f32; a 16-bit type rounds each operator's result once.
 */
export function modelTolerance(dtype: FloatType, layers: number): number {
  const steps = Math.sqrt(2 * OPERATORS * layers);
  const arithmetic = dtype === 'f64' ? roundoff.f64 : roundoff.f32;
  const isHalf = dtype === 'f16' || dtype === 'bf16';
  const stored = isHalf ? MAGNIFIED * roundoff[dtype] : 0;
  return steps * (GROWTH * arithmetic + stored);
}

/** The same of gradients: each layer on the way back may double the error. */
export function gradientTolerance(dtype: FloatType, layers: number): number {
  return 2 ** layers * modelTolerance(dtype, layers);
}
