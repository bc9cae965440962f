/** What the shell learns when `asa` ends. */
export const exitCode = {
  ok: 0,
  failure: 1,
  usage: 2,
  mismatch: 3,
  unavailable: 4,
  interrupted: 130,
} as const;

/** An error that decides the exit code. Its message is all that a user needs. */
export class ExitError extends Error {
  constructor(
    readonly code: number,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** The command line asks for what cannot be. */
export class UsageError extends ExitError {
  constructor(message: string, options?: ErrorOptions) {
    super(exitCode.usage, message, options);
  }
}

/**
 * Prints an error as one line on stderr, with the stack under `ASA_DEBUG=1`.
 * @returns the exit code that fits.
 */
export async function report(error: unknown): Promise<number> {
  const { code, message } = await explain(error);
  process.stderr.write(`asa: ${oneLine(message)}\n`);
  if (process.env.ASA_DEBUG === '1' && error instanceof Error) {
    process.stderr.write(`${error.stack}\n`);
  }
  return code;
}

export const oneLine = (text: string): string =>
  text.trim().replace(/\s*\n\s*/g, ' ');

async function explain(
  error: unknown,
): Promise<{ code: number; message: string }> {
  if (error instanceof ExitError) return error;
  const message = error instanceof Error ? error.message : String(error);
  // Imported here, because most commands that fail early never need it.
  const { ArgumentError, AsaError } = await import('@asa/core');
  const isOurBug =
    error instanceof AsaError
      ? message.startsWith('internal:')
      : !(error instanceof Error && 'code' in error);
  if (!isOurBug) {
    // All arguments come from the command line.
    const isUsage = error instanceof ArgumentError;
    return { code: isUsage ? exitCode.usage : exitCode.failure, message };
  }
  const text = message.startsWith('internal:') ? message : `internal: ${error}`;
  return {
    code: exitCode.failure,
    message: `${text} (this is a bug in asa; ASA_DEBUG=1 shows where)`,
  };
}
