/**
 * Every error the library throws on purpose. A message reads
 * `operator: rule, got value`, followed by the fix where there is one.
 * A message that starts with `internal:` is a bug of ours.
 */
export class AsaError extends Error {
  override readonly name: string = 'AsaError';
}

/** A tensor's shape breaks an operator's contract. */
export class ShapeError extends AsaError {
  override readonly name = 'ShapeError';
}

/** A tensor's element type breaks an operator's contract. */
export class DTypeError extends AsaError {
  override readonly name = 'DTypeError';
}

/** A value other than a tensor's shape or element type is out of its range. */
export class ArgumentError extends AsaError {
  override readonly name = 'ArgumentError';
}

/** A tensor was used after its storage was freed, or with another backend. */
export class TensorStateError extends AsaError {
  override readonly name = 'TensorStateError';
}

/** A backend cannot run an operator on these shapes, types or attributes. */
export class UnsupportedError extends AsaError {
  override readonly name = 'UnsupportedError';
  constructor(
    readonly operator: string,
    readonly backend: string,
    readonly reason: string,
  ) {
    super(`${operator}: backend ${backend} cannot run it, ${reason}`);
  }
}

/** A kernel did not compile. `log` is the compiler's own. */
export class CompileError extends AsaError {
  override readonly name = 'CompileError';
  constructor(
    readonly kernel: string,
    readonly log: string,
    readonly source: string,
  ) {
    super(`${kernel}: the kernel did not compile\n${log}`);
  }
}

/** The device went away. Open the backend again to go on. */
export class DeviceLostError extends AsaError {
  override readonly name = 'DeviceLostError';
}

/** The device has no room. Both figures are bytes. */
export class OutOfMemoryError extends AsaError {
  override readonly name = 'OutOfMemoryError';
  constructor(
    readonly asked: number,
    readonly inUse: number,
    detail = '',
  ) {
    super(
      `allocate: no memory for ${asked} bytes, ${inUse} bytes are in use${detail ? `, ${detail}` : ''}`,
    );
  }
}

/** A checkpoint file or folder breaks a rule. Nothing of it was loaded. */
export class CheckpointError extends AsaError {
  override readonly name = 'CheckpointError';
  constructor(
    readonly path: string,
    readonly tensor: string | undefined,
    readonly rule: string,
    options?: ErrorOptions,
  ) {
    super(
      `${path}: ${tensor === undefined ? '' : `tensor ${JSON.stringify(tensor)}: `}${rule}`,
      options,
    );
  }
}

/** A configuration value is missing, unknown or out of its range. */
export class ConfigError extends AsaError {
  override readonly name = 'ConfigError';
  constructor(
    readonly path: string,
    readonly field: string | undefined,
    readonly rule: string,
    options?: ErrorOptions,
  ) {
    super(
      `${path}: ${field === undefined ? '' : `${field}: `}${rule}`,
      options,
    );
  }
}
