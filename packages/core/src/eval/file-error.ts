import { AsaError } from '../errors';

/** A file of evaluation items breaks a rule. */
export class EvaluationFileError extends AsaError {
  override readonly name = 'EvaluationFileError';
  constructor(
    readonly path: string,
    /** Counts from 1. */
    readonly line: number,
    rule: string,
  ) {
    super(`${path}:${line}: ${rule}`);
  }
}
