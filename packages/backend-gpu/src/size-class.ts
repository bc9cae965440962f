const SMALLEST = 256;

/**
 * The bytes to allocate for a request, so that buffers are found again: four
 * classes to each power of two, at most a quarter is wasted.
 */
export function sizeClass(bytes: number): number {
  if (bytes <= SMALLEST) return SMALLEST;
  const step = 2 ** (Math.floor(Math.log2(bytes - 1)) - 2);
  return roundUp(bytes, Math.max(step, 4));
}

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}
