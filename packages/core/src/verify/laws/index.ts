import { gradientLaws } from './gradients';
import type { Law } from './law';
import { modelLaws } from './models';
import { operatorLaws } from './operators';

export type { Law, LawContext } from './law';

/** Every law of maths.md §7, about operators, layers and whole models. */
export const laws: readonly Law[] = [
  ...operatorLaws,
  ...modelLaws,
  ...gradientLaws,
];
